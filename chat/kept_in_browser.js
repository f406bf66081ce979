// A visitor's chats, in this browser: IndexedDB, a row a message. What fails rejects with a sentence for a person.
// chat/kept.js puts this and the server's database behind one interface; `changed` tells all tabs, `tell` the person.
window.tune2chat = { ...window.tune2chat, keptInBrowser(changed, tell) {
  const NAME = 'tune2chat';
  // One step for each version of the database. A later version of this page adds a step, and changes none.
  const UPGRADES = [
    (db) => {
      db.createObjectStore('chats', { keyPath: 'id' });
      db.createObjectStore('messages', { keyPath: ['chat', 'id'] }); // a copy of a chat has messages of the same ids
    },
  ];
  const PATIENCE_MS = 10_000; // for a database that another tab holds
  const REMOVED_S = 60; // a chat that was removed longer ago is gone at the next load
  const BATCH = 100; // messages that a search reads at a time
  const BLOCKED = 'This browser keeps nothing for this page (a private window, or its storage is blocked): chats are ' +
    'lost when this tab is closed. Save what you need as a file.';
  const HELD = 'Another tab holds the chats in an older version of this page. Close that tab.';
  const GONE = 'This chat was deleted, perhaps in another tab.';
  const OTHERS = 'This chat is here already, with other messages of the same ids.';
  const SENTENCES = {
    QuotaExceededError: 'This browser has no room left: what it could not keep is lost when this tab is closed. ' +
      'Delete other chats, or save this one as a file.',
    VersionError: 'The chats in this browser are those of a newer version of this page. Reload it.',
    SecurityError: BLOCKED,
    InvalidStateError: BLOCKED,
  };
  class Fault extends Error {} // its message is a sentence
  const faultOf = (cause) => {
    const unknown = `This browser could not keep or read a chat (${cause?.message ?? 'it gave up'}).`;
    return cause instanceof Fault ? cause : new Fault(SENTENCES[cause?.name] ?? unknown, { cause });
  };

  const got = (request) => new Promise((done, failed) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });
  let opened = null; // the promise of a database; null after a failure, which may pass
  const use = (db) => {
    db.onversionchange = ({ newVersion }) => { // whoever upgrades or deletes it waits for this
      db.close();
      opened = null;
      if (newVersion) tell(SENTENCES.VersionError);
    };
    db.onclose = () => (opened = null); // the browser closed it: its data were cleared, or the disk fails
    return db;
  };
  let late = false; // the database was asked for, and nobody waits any longer
  const open = () => (opened ??= new Promise((done, failed) => {
    if (!window.indexedDB) throw new Fault(BLOCKED);
    if (late) throw new Fault(HELD);
    const request = indexedDB.open(NAME, UPGRADES.length);
    const giveUp = () => {
      late = true;
      failed(new Fault(HELD));
    };
    const patience = setTimeout(giveUp, PATIENCE_MS);
    request.onblocked = giveUp;
    request.onerror = () => {
      clearTimeout(patience);
      late = false;
      failed(request.error);
    };
    request.onupgradeneeded = ({ oldVersion }) =>
      UPGRADES.slice(oldVersion).forEach((step) => step(request.result, request.transaction));
    request.onsuccess = () => {
      clearTimeout(patience);
      done(use(request.result));
      if (!late) return;
      [opened, late] = [Promise.resolve(request.result), false];
      changed(); // whoever asks again gets an answer now
    };
  }).catch((error) => {
    opened = null;
    throw error;
  }));

  const begin = async (mode) => {
    const of = (db) => db.transaction(['chats', 'messages'], mode, { durability: 'strict' });
    try {
      return of(await open());
    } catch (error) {
      if (error.name !== 'InvalidStateError') throw error;
      opened = null; // the browser closed the database, and has not said so yet
      return of(await open());
    }
  };
  // Runs `work` in one transaction, and resolves with its answer when all of that is on the disk.
  const transact = async (mode, work) => {
    let change;
    try {
      change = await begin(mode);
      const complete = new Promise((done, failed) => {
        change.oncomplete = done;
        change.onabort = () => failed(change.error);
      });
      complete.catch(() => {}); // also when `work` fails first
      const answer = await work(change.objectStore('chats'), change.objectStore('messages'));
      await complete;
      return answer;
    } catch (error) {
      try {
        change?.abort(); // half of it must not be kept
      } catch {} // it has ended
      throw faultOf(change?.error ?? error);
    }
  };

  const allOf = (id) => IDBKeyRange.bound([id], [id, []]);
  const size = (row) => new TextEncoder().encode(JSON.stringify(row)).length;
  const entries = () => transact('readonly', (chats) => got(chats.getAll()));
  const present = async () => (await entries()).filter(({ removed }) => !removed);
  // What a person decided, title and pin, holds over what the chat's own row says.
  const listed = ({ row, messages, title = row.title, pinned = row.pinned }) =>
    ({ id: row.id, title, made: row.made, changed: row.changed, pinned, messages });
  const mark = (id, marks) => transact('readwrite', async (chats) => {
    const entry = await got(chats.get(id));
    if (!entry) throw new Fault(GONE);
    chats.put({ ...entry, ...marks });
  });

  // `taken` from a file, which may be older: what is here of a chat that was changed since stays as it is.
  const write = async (chats, messages, chat, rows, taken) => {
    if (!rows.size && !(await got(chats.getKey(chat.id)))) throw new Fault(GONE); // a title may come late
    const entry = (await got(chats.get(chat.id))) ?? { id: chat.id, messages: 0, bytes: 0, removed: 0 };
    const stays = taken && entry.row?.changed >= chat.changed;
    await Promise.all([...rows.values()].map(async (row) => {
      const before = await got(messages.get([chat.id, row.id]));
      const place = ({ parent, message }) => JSON.stringify([parent, message.role]);
      if (taken && before && place(before) !== place(row)) throw new Fault(OTHERS);
      if (stays && before) return;
      const kept = { ...row, chat: chat.id, place: before?.place ?? entry.messages++ }; // siblings stay in order
      // Rows without their beginning can't be read: the chat was deleted while its reply was written.
      const begins = !row.parent || rows.has(row.parent) || (await got(messages.getKey([chat.id, row.parent])));
      if (!begins) throw new Fault(GONE);
      entry.bytes += size(kept) - (before ? size(before) : 0);
      messages.put(kept);
    }));
    chats.put({ ...entry, row: stays ? entry.row : chat });
  };
  const unkept = new Map(); // what could not be kept yet, by chat: it goes along with what comes next
  const retry = () => unkept.forEach(({ chat }) => put({ chat, messages: [] }).catch(() => {}));
  const put = async ({ chat, messages }, taken = false) => {
    const before = unkept.get(chat.id), waiting = { chat, rows: new Map(before?.rows), failed: false };
    waiting.taken = taken || before?.taken;
    messages.forEach((row) => waiting.rows.set(row.id, row));
    unkept.set(chat.id, waiting);
    try {
      await transact('readwrite', (chats, kept) => write(chats, kept, chat, waiting.rows, waiting.taken));
    } catch (error) {
      waiting.failed = true;
      if ([GONE, OTHERS].includes(error.message)) unkept.delete(chat.id);
      throw error;
    }
    if (unkept.get(chat.id) === waiting) unkept.delete(chat.id);
    if (before?.failed) retry(); // there is room again
    navigator.storage?.persist?.().catch(() => {}); // or the browser may clear it when its disk is full
    changed(chat.id);
  };
  const erase = async (ids, which = () => true) => {
    await transact('readwrite', (chats, messages) => Promise.all(ids.map(async (id) => {
      if (!which(await got(chats.get(id)))) return;
      chats.delete(id);
      messages.delete(allOf(id));
    })));
    ids.forEach((id) => unkept.delete(id));
    retry();
  };

  const fold = (text) => text.normalize('NFKC').toLowerCase();
  const around = (text, word) => {
    const plain = text.normalize('NFKC'), at = Math.max(0, fold(text).indexOf(word) - 30);
    const cut = plain.slice(at, at + 120).replace(/^[\udc00-\udfff]|[\ud800-\udbff]$/g, ''); // halves of a character
    return `${at ? '…' : ''}${cut.replace(/\s+/g, ' ')}${at + 120 < plain.length ? '…' : ''}`;
  };
  const list = async () =>
    (await present()).map(listed).sort((a, b) => b.pinned - a.pinned || b.changed - a.changed);
  // The chats whose title or one of whose messages has all words of `text`; `found` is where.
  const search = async (text, signal) => {
    const words = fold(text).split(/\s+/).filter(Boolean);
    const has = (text) => words.every((word) => fold(text).includes(word));
    const chats = new Map((await list()).map((chat) => [chat.id, chat]));
    for (const chat of chats.values()) if (has(chat.title)) chat.found = '';
    for (let last = []; last && !signal?.aborted;) {
      const rows = await transact('readonly', (_, messages) =>
        got(messages.getAll(IDBKeyRange.lowerBound(last, true), BATCH)));
      for (const { chat, message } of rows) {
        const about = chats.get(chat);
        if (about && !about.found && has(message.content)) about.found = around(message.content, words[0]);
      }
      last = rows.length === BATCH && [rows.at(-1).chat, rows.at(-1).id];
    }
    return [...chats.values()].filter(({ found }) => found !== undefined);
  };
  const read = (id) => transact('readonly', async (chats, messages) => {
    const entry = await got(chats.get(id));
    if (!entry || entry.removed) return null;
    const { title, pinned } = listed(entry), rows = await got(messages.getAll(allOf(id)));
    return {
      chat: { ...entry.row, title, pinned },
      messages: rows.sort((a, b) => a.place - b.place).map(({ chat, place, ...row }) => row),
    };
  });

  const dropped = new Map(); // chats that were removed when there was no room left even to mark them
  const remove = async (id) => {
    try {
      await mark(id, { removed: Date.now() / 1000 });
    } catch (error) {
      if (error.cause?.name !== 'QuotaExceededError') throw error;
      dropped.set(id, await read(id));
      await erase([id]);
    }
    changed(id);
  };
  const restore = async (id) => {
    if (dropped.has(id)) await put(dropped.get(id));
    else await mark(id, { removed: 0 });
    changed(id);
  };
  // From now on nothing brings these back, unless they were restored.
  const forget = async (ids) => {
    ids.forEach((id) => dropped.delete(id));
    await erase(ids, (entry) => entry?.removed);
  };
  // What was removed while the page was closed before it was forgotten.
  const tidy = async () => {
    const before = Date.now() / 1000 - REMOVED_S;
    const old = (await entries()).filter(({ removed }) => removed && removed < before);
    if (old.length) await forget(old.map(({ id }) => id));
  };
  const change = async (id, what) => {
    await mark(id, what);
    changed(id);
  };
  // Deletes everything. Then `wipe` has the browser delete its files, which hold deleted text for a while.
  const clear = async (wipe) => {
    const ids = (await entries()).map(({ id }) => id);
    await transact('readwrite', (chats, messages) => Promise.all([got(chats.clear()), got(messages.clear())]));
    [unkept, dropped].forEach((map) => map.clear());
    await wipe();
    changed(...ids);
  };
  const room = async () => {
    const used = (await present()).reduce((sum, { row, bytes }) => sum + size(row) + bytes, 0);
    return { used, where: 'in this browser', quota: (await navigator.storage?.estimate?.())?.quota };
  };
  const behind = () => unkept.size > 0;
  return { list, search, read, put, change, remove, restore, forget, clear, room, entries, erase, tidy, behind };
} };
