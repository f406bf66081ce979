// What can be done with a message beside Gradio's own buttons: another of its versions ("2/3"), a new chat from here.
// The server says which messages the rows are; Gradio draws the toolbars anew whenever it likes, so they are amended.
(() => {
  const page = window.tune2chat;
  let marks = [];
  const button = (label, text, act, id) => {
    const made = Object.assign(document.createElement('button'), { textContent: text, title: label, disabled: !id });
    made.setAttribute('aria-label', label);
    made.onclick = () => page.act(act, { id });
    return made;
  };
  const fork = (id) => {
    const made = button('New chat from here', '', 'branch', id);
    made.innerHTML = '<svg viewBox="0 0 24 24" width="13" height="13" fill="none" stroke="currentColor" stroke-width="2">' +
      '<circle cx="6" cy="5" r="2"/><circle cx="6" cy="19" r="2"/><circle cx="18" cy="8" r="2"/><path d="M6 7v10M18 10c0 5-12 2-12 7"/></svg>';
    return made;
  };
  const switcher = ({ id, versions }) => {
    const at = versions.indexOf(id), place = document.createElement('span');
    place.textContent = `${at + 1}/${versions.length}`;
    return [button('Version before', '\u2039', 'show', versions[at - 1]), place,
      button('Version after', '\u203a', 'show', versions[at + 1])];
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
      more.append(...(mark.versions.length > 1 ? switcher(mark) : []), fork(mark.id));
      old?.remove();
      bar.append(more);
    });
  };
  page.mark = (value) => {
    marks = value ?? [];
    requestAnimationFrame(amend);
  };
  page.amendMarks = amend;
})();
