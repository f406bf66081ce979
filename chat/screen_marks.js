// What can be done with a message beside Gradio's own buttons: another of its versions ("2/3"), a vote, a new chat from
// here. Gradio's own thumbs stay as they are when another chat is opened below them.
// The server says which messages the rows are; Gradio draws the toolbars anew whenever it likes, so they are amended.
(() => {
  const page = window.tune2chat;
  let marks = [];
  const FORK = '<circle cx="6" cy="5" r="2"/><circle cx="6" cy="19" r="2"/><circle cx="18" cy="8" r="2"/>' +
    '<path d="M6 7v10M18 10c0 5-12 2-12 7"/>';
  const THUMB = '<path d="M7 10v11M7 10l4-8c2 0 3 1 3 3l-1 5h6c1 0 2 1 2 2l-2 7c0 1-1 2-2 2H4c-1 0-2-1-2-2v-7c0-1 1-2 2-2z"/>';
  const button = (label, text, act, id, more = {}) => {
    const made = Object.assign(document.createElement('button'), { textContent: text, title: label, disabled: !id });
    made.setAttribute('aria-label', label);
    made.onclick = () => page.act(act, { id, ...more });
    return made;
  };
  const drawn = (made, shape) => {
    made.innerHTML = '<svg viewBox="0 0 24 24" width="13" height="13" fill="none" stroke="currentColor" ' +
      `stroke-width="2" stroke-linejoin="round">${shape}</svg>`;
    return made;
  };
  const fork = (id) => drawn(button('New chat from here', '', 'branch', id), FORK);
  // What somebody thinks of a reply, which a second press takes back.
  const thumb = ({ id, vote }, label, value) => {
    const made = drawn(button(label, '', 'rate', id, { vote: vote === value ? 0 : value }), THUMB);
    made.setAttribute('aria-pressed', vote === value);
    made.classList.toggle('down', value < 0);
    return made;
  };
  const thumbs = (mark) => [thumb(mark, 'Good reply', 1), thumb(mark, 'Bad reply', -1)];
  const switcher = ({ id, versions }) => {
    const at = versions.indexOf(id), place = document.createElement('span');
    place.textContent = `${at + 1}/${versions.length}`;
    return [button('Version before', '\u2039', 'show', versions[at - 1]), place,
      button('Version after', '\u203a', 'show', versions[at + 1])];
  };
  // Who pressed a button goes on from there; at the last version, that is from its neighbour.
  const focusOn = (more, label) => {
    const buttons = [...more.querySelectorAll('button:enabled')];
    (buttons.find(({ title }) => title === label) ?? buttons[0])?.focus();
  };
  const amend = () => {
    document.querySelectorAll('#chat .message-row').forEach((row, at) => {
      const mark = marks[at], bar = row.nextElementSibling?.querySelector('.icon-button-wrapper');
      if (!mark || !bar) return;
      const now = JSON.stringify(mark), old = bar.querySelector(':scope > .more');
      if (old?.dataset.mark === now) return;
      const more = document.createElement('div');
      more.className = 'more';
      more.dataset.mark = now;
      const [versions, votes] = [mark.versions.length > 1, mark.vote !== null];
      more.append(...(versions ? switcher(mark) : []), ...(votes ? thumbs(mark) : []), fork(mark.id));
      const pressed = old?.contains(document.activeElement) && document.activeElement.title;
      old?.remove();
      bar.append(more);
      if (pressed) focusOn(more, pressed);
    });
  };
  page.mark = (value) => {
    marks = value ?? [];
    requestAnimationFrame(amend);
  };
  page.amendMarks = amend;
})();
