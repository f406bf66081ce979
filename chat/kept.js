// The chats that are kept, behind one interface: a visitor's in this browser (chat/kept_in_browser.js), those of a
// person who signed in on the server, which writes them itself. Whatever fails rejects with a sentence for a person;
// `store.fault` has it, with an event, until all is well again.
(() => {
  const NAME = 'tune2chat', THEME = `${NAME}-theme`;
  const OPERATIONS = ['list', 'search', 'read', 'put', 'change', 'remove', 'restore', 'forget', 'clear', 'room'];
  const POST_LENGTH = 1_000_000;
  const SIGNED_OUT = 'You are signed out, as happens when the app is started again. Reload the page and sign in.';

  const store = Object.assign(new EventTarget(), { fault: '', onchange: null });
  const tell = (sentence) => {
    if (store.fault === sentence) return;
    store.fault = sentence;
    store.dispatchEvent(new Event('fault'));
  };
  // Tabs tell each other what they changed. `onchange` hears of the others only, the event of this one too.
  const channel = window.BroadcastChannel && new BroadcastChannel(NAME);
  const announce = (ids, elsewhere) => {
    store.dispatchEvent(new CustomEvent('change', { detail: { ids, elsewhere } }));
    if (elsewhere) store.onchange?.(ids);
  };
  const changed = (...ids) => {
    if (ids.length) channel?.postMessage(ids);
    announce(ids, false);
  };
  channel?.addEventListener('message', ({ data }) => announce(data, true));
  const visitor = window.tune2chat.keptInBrowser(changed, tell);

  let user = '';
  const ask = async (method, path = '', body, signal) => {
    const answer = await fetch(`${window.gradio_config?.root ?? ''}/chats${path}`, {
      method, signal, body: body && JSON.stringify(body),
      headers: method === 'GET' ? {} : { 'Content-Type': 'application/json' },
    }).catch(() => {
      throw new Error('The app does not answer, so the list of chats may be out of date. Is it still running?');
    });
    const told = await answer.json().catch(() => ({}));
    if (answer.status === 401) throw new Error(SIGNED_OUT);
    if (!answer.ok) throw new Error(told.detail ?? `The app answers with an error (${answer.status}).`);
    return told;
  };
  const mine = async (query = '', signal) => {
    const answer = await ask('GET', query, undefined, signal);
    if (answer.user !== user) throw new Error(SIGNED_OUT);
    return answer;
  };
  const act = async (method, id, path = '', body) => {
    await ask(method, `/${encodeURIComponent(id)}${path}`, body);
    changed(id);
  };
  const account = {
    list: async () => (await mine()).chats,
    search: async (text, signal) => (await mine(`?search=${encodeURIComponent(text)}`, signal)).chats,
    read: async (id) => ({ chat: { id } }), // the server has it
    put: async ({ chat }) => changed(chat.id), // the server did
    change: (id, what) => act('PATCH', id, '', what),
    remove: (id) => act('DELETE', id),
    restore: (id) => act('POST', id, '/restore', {}),
    forget: async () => {}, // the server does, in its own time
    async clear() {
      const { chats } = await mine();
      await ask('DELETE');
      changed(...chats.map(({ id }) => id));
    },
    room: async () => ({ used: (await mine()).bytes, where: 'on the server' }),
  };

  // The answer tells the browser to clear this page's storage (Clear-Site-Data), of which only the theme is no chat.
  const wipe = async () => {
    const theme = localStorage.getItem(THEME);
    await ask('DELETE').catch(() => {}); // then it is deleted, and its files are tidied in the browser's own time
    if (theme) localStorage.setItem(THEME, theme);
  };
  const here = { ...visitor, clear: () => visitor.clear(wipe) };

  // A visitor's chats come along when they sign in. One that the server refuses stays here, and the others go; one that
  // another tab writes meanwhile stays until next time.
  let stays = '';
  const send = async (moving) => {
    try {
      await ask('POST', '', { chats: moving.map(({ tree }) => tree) });
      const before = new Map(moving.map(({ entry }) => [entry.id, JSON.stringify(entry)]));
      await visitor.erase([...before.keys()], (entry) => JSON.stringify(entry) === before.get(entry?.id));
    } catch (error) {
      if (moving.length === 1) stays = `A chat from before you signed in stays in this browser: ${error.message}`;
      else for (const each of moving) await send([each]);
    }
  };
  const bring = async () => {
    let moving = [], length = 0;
    for (const entry of await visitor.entries()) {
      const tree = await visitor.read(entry.id);
      if (!tree) continue; // deleted
      const more = JSON.stringify(tree).length;
      if (moving.length && length + more > POST_LENGTH) {
        await send(moving);
        [moving, length] = [[], 0];
      }
      moving.push({ entry, tree });
      length += more;
    }
    if (moving.length) await send(moving);
  };
  const begin = async () => {
    try {
      ({ user } = await ask('GET'));
    } catch (error) {
      stays = `${error.message} Until this page is loaded again, chats are kept in this browser only.`;
    }
    const work = () => visitor.tidy().then(() => user && bring());
    await (navigator.locks ? navigator.locks.request(NAME, work) : work()) // one tab at a time
      .catch(() => {}); // without storage there is nothing to bring, and whoever keeps a chat is told
    return { user };
  };

  store.ready = begin();
  for (const name of OPERATIONS)
    store[name] = async (...given) => {
      await store.ready;
      try {
        const answer = await (user ? account : here)[name](...given);
        if (user || !visitor.behind()) tell(stays);
        return answer;
      } catch (error) {
        if (name !== 'search' || !given[1]?.aborted) tell(error.message);
        throw error;
      }
    };
  // One writer a chat. Resolves with false where another tab has it, else with what frees it; a tab that is closed or
  // killed frees its own. Where a page has no locks (HTTP, not on localhost) rows of two tabs stand side by side.
  store.lock = (id) => new Promise((done) => {
    const free = () => done(() => {});
    if (!navigator.locks) return free();
    const hold = (lock) => lock ? new Promise((release) => done(release)) : done(false);
    navigator.locks.request(`${NAME}-chat:${id}`, { ifAvailable: true }, hold).catch(free);
  });
  window.tune2chat.store = store;
})();
