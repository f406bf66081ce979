// Ties the chats that are kept (chat/kept.js) and their list to the page: which one this tab shows, what the server
// says is to be kept, files that come in and go out. `window.tune2chat.attach` is called by the hidden bus.
(() => {
  const page = window.tune2chat, { store, line } = page;
  const OPEN = 'tune2chat-open'; // of this tab, through reloads
  const VISITOR = 'tune2chat-visitor', DRAFT = 'tune2chat-draft';
  const TAB = 'tune2chat-tab:';
  const CUT = 'The app can not be reached. Chats that are kept in this browser can be searched, renamed and deleted; ' +
    'opening one and sending a message have to wait until the line is back. What you type stays.';
  const LARGEST_TEXT = 1_000_000; // characters of a file that becomes part of a message
  const LARGEST_FILE = 5_500_000; // of one with chats: what the app takes at once
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
  const open = async (id, more = {}) => {
    if (!id) return page.act('fresh');
    try {
      const rows = await store.read(id);
      if (rows) return page.act('open', { id, rows, ...more });
      tell('This chat is not here any more.');
    } catch {} // the store tells
    page.act('fresh');
  };
  // A reply is written by one tab: its rows are this tab's from its first to its last.
  const endOf = ({ chat, messages }) => {
    const last = messages.find(({ id }) => id === chat.leaf);
    return JSON.stringify([chat.id, chat.leaf, chat.compared ?? null, last?.message]);
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
  const save = ({ text, name, type }) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  let last = -1;
  const hear = async (told) => {
    if (!told || told.number === last) return;
    last = told.number;
    if (told.open !== undefined) show(told.open);
    if (told.keep || told.draft !== undefined) draft(told.draft ?? '');
    for (const rows of [told.keep ?? []].flat()) keep(rows, told.done);
    if (told.keep_all) {
      for (const rows of told.keep_all) await store.put(rows, true).catch(() => {});
      open(told.open); // with what was there of it already
    }
    if (told.save) save(told.save);
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

  const fits = ({ name, size }, largest) => {
    if (size > largest) throw new Error(`${name} has ${(size / 1e6).toFixed(1)} MB; at most ${largest / 1e6} are taken.`);
  };
  const text = async (file) => {
    fits(file, LARGEST_TEXT);
    const read = await file.text();
    if (read.includes('\0') || read.includes('\ufffd')) throw new Error(`${file.name} is not a text file.`);
    return read;
  };
  const pick = (accept, take) => {
    const input = Object.assign(document.createElement('input'), { type: 'file', accept, id: 'file' });
    input.onchange = () => input.files[0] && take(input.files[0]).catch((error) => tell(error.message));
    input.click();
  };
  // A chat is renamed and pinned in the list, which tells the store and not the app.
  page.saveAs = async (format) => {
    const { title, pinned } = (await store.read(current).catch(() => null))?.chat ?? {};
    page.act('export', { format, title, pinned });
  };
  page.openFile = () => pick('.json,.jsonl,.zip', async (file) => {
    fits(file, LARGEST_FILE);
    const bytes = new Uint8Array(await file.arrayBuffer()), parts = [];
    for (let at = 0; at < bytes.length; at += 0x8000) parts.push(String.fromCharCode(...bytes.subarray(at, at + 0x8000)));
    page.act('import', { data: btoa(parts.join('')), own: await store.list().catch(() => []) });
  });

  const read = (key) => {
    try {
      return sessionStorage.getItem(key);
    } catch {
      return null;
    }
  };
  const write = (text) => {
    const box = find('#box textarea');
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(box, text);
    box.dispatchEvent(new Event('input', { bubbles: true }));
  };
  // A text file in the box becomes part of the message; it is read here, and goes nowhere before it is sent.
  const fence = (read) => '`'.repeat(Math.max(3, ...(read.match(/`+/g) ?? []).map((ticks) => ticks.length + 1)));
  const insert = async (file) => {
    const box = find('#box textarea'), read = await text(file), ticks = fence(read);
    const part = `${file.name}:\n${ticks}\n${read.replace(/\n$/, '')}\n${ticks}\n`;
    write(box.value + (box.value && !box.value.endsWith('\n') ? '\n' : '') + part);
    box.focus();
    page.act('count', { text: box.value });
  };
  const take = async (files) => {
    for (const file of files) await insert(file);
  };
  const drop = (event) => {
    const files = [...(event.dataTransfer ?? event.clipboardData).files];
    if (!files.length) return;
    event.preventDefault();
    event.stopPropagation();
    take(files).catch((error) => tell(error.message));
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
    if (rows) page.act('open', { id: newest, rows });
    else {
      page.act('hello');
      show('');
    }
    const lost = read(DRAFT);
    if (lost && !find('#box .stop-button') && !find('#box textarea').value) write(lost);
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
    for (const name of ['dragover', 'drop', 'paste'])
      box.addEventListener(name, name === 'dragover' ? (event) => event.preventDefault() : drop, true);
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
