// Runs before Gradio: gr.BrowserState keeps the chat in localStorage under one key, which all tabs share and
// where a write that fails is lost silently. Here each tab gets a key of its own, and a failure is told.
(() => {
  const KEY = 'tune2chat';
  const KEPT_CLOSED = 8; // chats of closed tabs: the browser can reopen a tab
  const BEAT_MS = 5_000, SILENCE_MS = 150_000; // browsers let the clocks of hidden tabs tick once a minute
  const { getItem, setItem, removeItem } = Storage.prototype;
  const read = (key) => getItem.call(localStorage, key);
  const chatOf = (id) => `${KEY}-chat:${id}`;
  const tabOf = (id) => `${KEY}-tab:${id}`;

  // The other tabs, the one that was used last first. A closed one says so, unless its browser was killed.
  const others = () =>
    Object.keys(localStorage)
      .filter((key) => key.startsWith(tabOf('')) && key !== tabOf(id))
      .map((key) => ({ id: key.slice(tabOf('').length), ...JSON.parse(read(key)) }))
      .sort((a, b) => b.at - a.at);
  const isOpen = (tab) => tab.open && Date.now() - tab.at < SILENCE_MS;
  const forget = (id) => [chatOf(id), tabOf(id)].forEach((key) => removeItem.call(localStorage, key));
  const note = (open) => {
    try {
      setItem.call(localStorage, tabOf(id), JSON.stringify({ open, at: Date.now() }));
    } catch {} // no room: then there is nothing to find again either
  };
  const tell = (text) => {
    const told = document.querySelector('#kept') ?? document.createElement('p');
    if (!text && !told.isConnected) return;
    Object.assign(told, { id: 'kept', textContent: text, hidden: !text });
    told.setAttribute('role', 'alert');
    if (!told.isConnected) document.querySelector('#under')?.before(told);
  };
  const keep = (value) => {
    for (;;) {
      try {
        setItem.call(localStorage, chatOf(id), value);
        note(true);
        return tell('');
      } catch {
        const closed = others().filter((tab) => !isOpen(tab)).pop();
        if (!closed) break;
        forget(closed.id);
      }
    }
    tell('The browser has no room left: a reload of this page loses what was said since. Save the chat, ' +
      'or begin a new one here or in another tab.');
  };

  let id = null;
  try {
    const own = sessionStorage.getItem(KEY);
    const state = own && JSON.parse(read(tabOf(own)) ?? 'null');
    const [entry] = performance.getEntriesByType('navigation');
    // A tab that was duplicated has the other one's id, and that one is open.
    const copied = own && isOpen(state ?? {}) && entry?.type === 'navigate';
    if (own && !copied) id = own;
    else id = crypto.getRandomValues(new Uint32Array(2)).join('-');
    sessionStorage.setItem(KEY, id);
    const [last] = others();
    const returned = !own && last && !others().some(isOpen) ? last.id : null;
    // Under KEY itself, an earlier version kept it.
    const before = read(KEY) ?? (copied || returned ? read(chatOf(copied ? own : returned)) : null);
    removeItem.call(localStorage, KEY);
    if (before && !read(chatOf(id))) keep(before);
    note(true);
    others().filter((tab) => !isOpen(tab)).slice(KEPT_CLOSED).forEach((tab) => forget(tab.id));
  } catch {
    return; // no storage here at all: Gradio goes on as it can
  }
  addEventListener('pagehide', () => note(false));
  addEventListener('pageshow', () => note(true));
  setInterval(() => note(true), BEAT_MS);

  const ours = (storage, key) => storage === localStorage && key === KEY;
  Storage.prototype.getItem = function (key) {
    return ours(this, key) ? read(chatOf(id)) : getItem.call(this, key);
  };
  Storage.prototype.setItem = function (key, value) {
    return ours(this, key) ? keep(value) : setItem.call(this, key, value);
  };
})();
