// How a list of chats is drawn: by date, a row a chat. Titles and messages are written by people and models: here they
// only ever become text.
window.tune2chat = { ...window.tune2chat, rows: (() => {
  const DAY_MS = 86_400_000;
  const MONTH = new Intl.DateTimeFormat('en', { month: 'long', year: 'numeric' });
  const UNITS = ['B', 'kB', 'MB', 'GB', 'TB'];

  const make = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const name in attributes) made.setAttribute(name, attributes[name]);
    made.append(...children); // strings become text
    return made;
  };
  const button = (act, text, attributes) => make('button', { type: 'button', 'data-act': act, ...attributes }, text);
  const nameOf = ({ title }) => (/[\p{L}\p{N}\p{P}\p{S}]/u.test(title) ? title : 'New chat');
  const counted = (count) => `${count.toLocaleString('en')} chat${count === 1 ? '' : 's'}`;
  const bytes = (count) => {
    const unit = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(count, 1)) / 3));
    const value = count / 1000 ** unit;
    const digits = unit && value < 10 ? 1 : 0;
    return `${value.toLocaleString('en', { maximumFractionDigits: digits })} ${UNITS[unit]}`;
  };

  const groupOf = (chat, today) => {
    if (chat.pinned) return 'Pinned';
    const day = new Date(chat.changed * 1000).setHours(0, 0, 0, 0);
    const days = Math.round((today - day) / DAY_MS); // rounded: some days have 23 or 25 hours
    if (!(days > 0)) return 'Today'; // also where a clock is wrong
    if (days === 1) return 'Yesterday';
    if (days <= 30) return days <= 7 ? 'Previous 7 days' : 'Previous 30 days';
    return MONTH.format(day);
  };
  // Names of groups and their chats, in the order of `chats`.
  const grouped = (chats, searched) => {
    const groups = new Map(), today = new Date().setHours(0, 0, 0, 0);
    for (const chat of chats) {
      const name = searched ? 'Found' : groupOf(chat, today);
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(chat);
    }
    return groups;
  };

  const found = (text, word) => {
    const at = text.toLowerCase().indexOf(word), small = make('small', { dir: 'auto' }, text);
    if (at >= 0) {
      const rest = small.firstChild.splitText(at);
      rest.splitText(Math.min(word.length, rest.length));
      const mark = make('mark');
      rest.replaceWith(mark);
      mark.append(rest);
    }
    return small;
  };
  const row = (chat, word) => {
    const name = nameOf(chat);
    const open = button('open', name, { class: 'title', dir: 'auto', title: name, tabindex: -1 });
    if (chat.found) open.append(found(chat.found, word));
    const about = { class: 'more', 'aria-label': `More: ${name}`, 'aria-expanded': false, tabindex: -1 };
    const more = button('more', '⋯', about);
    return make('li', { 'data-id': chat.id }, open, more);
  };
  const section = ([name, chats], word) => {
    const list = make('ul', { role: 'list', 'aria-label': name }, ...chats.map((chat) => row(chat, word)));
    return make('section', {}, make('h2', {}, name), list);
  };
  return { make, button, nameOf, counted, bytes, grouped, section };
})() };
