// Ties the chats that are kept (chat/kept.js) and their list to the page: which one this tab shows, what the server
// says is to be kept, files that come in and go out. `window.tune2chat.attach` is called by the hidden bus.
(() => {
  const page = window.tune2chat, { store, line } = page;
  const OPEN = 'tune2chat-open'; // of this tab, through reloads
  const VISITOR = 'tune2chat-visitor', DRAFT = 'tune2chat-draft';
  const TAB = 'tune2chat-tab:';
  const CUT = 'The app can not be reached. Chats that are kept in this browser can be searched, renamed and deleted; ' +
    'opening one and sending a message have to wait until the line is back. What you type stays.';
  const LARGEST_CHAT = 8_000_000; // bytes: of what the app takes at once, chat/guard.py
  const TOO_LARGE = 'This chat has more than 8 MB, which is more than can be opened. It stays in this browser.';
  // Who knows this may take up the replies that are written for this browser; ids of chats are in saved files too.
  let visitor = crypto.getRandomValues(new Uint32Array(4)).join('-');
  try {
    visitor = localStorage.getItem(VISITOR) ?? visitor;
    localStorage.setItem(VISITOR, visitor);
  } catch {} // without storage it is this page's only
  let current = '', seen = '', list = null, busy = null;
  const find = (selector) => document.querySelector(selector);

  const tell = (text) => {
    const told = find('#kept') ?? Object.assign(document.createElement('p'), { id: 'kept', role: 'alert' });
    told.hidden = !text;
    told.textContent = text;
    if (!told.isConnected) find('#under')?.before(told);
  };
  // What a file is refused for, until something is typed; what lasts is told below it.
  page.say = (sentence) => tell(sentence || (line.cut ? CUT : store.fault));
  store.addEventListener('fault', () => tell(store.fault));
  line.addEventListener('change', () => {
    tell(line.cut ? CUT : store.fault);
    if (!line.cut) list?.refresh(); // those of a person who signed in are on the other side
  });

  const show = (id) => {
    current = id;
    list?.current(id);
    document.body.dataset.ready = id || 'new'; // which chat this tab shows is settled
    try {
      sessionStorage.setItem(OPEN, id);
    } catch {} // without storage a reload begins anew, and the list says so
  };
  // What was sent is kept from its first token on; until then it would be lost with the app.
  const draft = (text) => {
    try {
      if (text) sessionStorage.setItem(DRAFT, text);
      else sessionStorage.removeItem(DRAFT);
    } catch {}
  };
  const fits = (rows) => new Blob([JSON.stringify(rows)]).size <= LARGEST_CHAT;
  const open = async (id, more = {}) => {
    if (!id) return page.act('fresh');
    try {
      const rows = await store.read(id);
      if (rows && fits(rows)) return page.act('open', { id, rows, ...more });
      tell(rows ? TOO_LARGE : 'This chat is not here any more.');
    } catch {} // the store tells
    page.act('fresh');
  };
  page.open = open;
  page.current = () => current;
  // A reply is written by one tab: its rows are this tab's from its first to its last.
  const endOf = ({ chat, messages }) => {
    const last = messages.find(({ id }) => id === chat.leaf);
    return JSON.stringify([chat.id, chat.leaf, chat.compared ?? null, last?.message, last?.vote]);
  };
  const keep = async (rows, done) => {
    seen = endOf(rows);
    try {
      busy ??= store.lock(rows.chat.id);
      await store.put(rows);
      if (done) find('#status')?.setAttribute('data-kept', rows.chat.id);
    } catch {} finally {
      if (done) {
        const release = await busy;
        busy = null;
        release?.();
      }
    }
  };
  let last = -1, answered = () => {};
  // An action whose answer is waited for, `{ came }` or `{ failed }`.
  page.ask = (act, more) => new Promise((done) => {
    answered = done;
    page.act(act, more);
  });
  const hear = (told) => {
    if (!told || told.number === last) return;
    last = told.number;
    if (told.open !== undefined) show(told.open);
    if (told.keep || told.draft !== undefined) draft(told.draft ?? '');
    for (const rows of [told.keep ?? []].flat()) keep(rows, told.done);
    if (told.save) page.save(told.save);
    if (told.came || told.failed === 'import') answered(told);
    if (told.lost) open(current, { lost: true });
    if (told.failed === 'open') page.act('fresh', { quiet: true });
  };
  page.attach = ({ trigger, watch, props }) => {
    page.act = (act, more = {}) => line.cut || trigger('click', { act, visitor, ...more });
    watch('value', () => hear(props.value));
  };

  // What another tab changed in the chat that is open here is shown here too, but for a reply in the making.
  store.onchange = async (ids) => {
    if (!ids.includes(current) || busy || find('#box .stop-button')) return;
    const rows = await store.read(current).catch(() => null);
    if (!rows?.messages || endOf(rows) !== seen) open(current); // else this tab has followed it
  };

  const read = (key) => {
    try {
      return sessionStorage.getItem(key);
    } catch {
      return null;
    }
  };
  page.write = (text) => {
    const box = find('#box textarea');
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(box, text);
    box.dispatchEvent(new Event('input', { bubbles: true }));
  };
  const begin = async () => {
    await store.ready;
    let own = null, others = 0;
    try {
      own = sessionStorage.getItem(OPEN);
      const { held } = await navigator.locks.query();
      others = held.filter(({ name }) => name.startsWith(TAB)).length;
      navigator.locks.request(TAB + crypto.getRandomValues(new Uint32Array(2)).join('-'), () => new Promise(() => {}));
    } catch {} // a page without locks or storage begins with a new chat
    const model = new URLSearchParams(location.search).get('model');
    if (model) return page.act('fresh', { model });
    // The last chat comes back with the browser; a further tab begins a new one.
    const newest = own ?? (others ? '' : (await store.list().catch(() => []))[0]?.id);
    const rows = newest && (await store.read(newest).catch(() => null));
    if (rows && fits(rows)) page.act('open', { id: newest, rows });
    else {
      if (rows) tell(TOO_LARGE);
      page.act('hello');
      show('');
    }
    const lost = read(DRAFT);
    if (lost && !find('#box .stop-button') && !find('#box textarea').value) page.write(lost);
    draft('');
  };
  page.start = () => {
    const actions = {
      open: (id) => id !== current && open(id),
      fresh: () => page.act('fresh'),
      removed: (id) => {
        page.act('gone', { id });
        if (id === current) page.act('fresh');
      },
    };
    list = page.list(find('#chats'), actions) ?? page.list;
    const box = find('#box');
    page.takeFiles(box);
    // Gradio would try to send, fail, and load the page anew.
    const hold = (event) => {
      if (!line.cut) return;
      event.preventDefault();
      event.stopPropagation();
    };
    box.addEventListener('keydown', (event) => event.key === 'Enter' && !event.shiftKey && hold(event), true);
    box.addEventListener('click', (event) => event.target.closest('.submit-button') && hold(event), true);
    window.addEventListener('pagehide', () => find('#box textarea').value && draft(find('#box textarea').value));
    begin();
  };
})();
