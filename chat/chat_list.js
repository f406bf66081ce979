// The list of chats that chat/kept.js keeps: search, and what can be done to each. The page says what follows:
// `actions` are open(id), fresh() and removed(id).
window.tune2chat = { ...window.tune2chat, list(root, actions) {
  const { store, rows: { make, button, nameOf, counted, bytes, grouped, section } } = window.tune2chat;
  const UNDO_MS = 10_000, TYPING_MS = 200, TITLE_CHARACTERS = 200, FIND = 'Search chats';

  const search = make('input', { type: 'search', dir: 'auto', placeholder: FIND, 'aria-label': FIND });
  const fault = make('p', { class: 'fault', role: 'alert' }, store.fault);
  const panel = make('nav', { class: 'panel', 'aria-label': 'Chats' });
  const status = make('span', { role: 'status', dir: 'auto' });
  const undo = button('undo', 'Undo', { hidden: '' });
  const told = make('div', { class: 'told' }, status, undo);
  const room = make('span', { class: 'room' });
  const foot = make('div', { class: 'foot' }, room, button('ask', 'Delete everything'));
  const out = make('a', { class: 'out', href: 'logout?all_session=false', hidden: '' });
  const sure = make('div', { class: 'sure', role: 'group', 'aria-label': 'Delete everything?', hidden: '' },
    make('p', {}, 'Delete all chats, for good?'),
    button('clear', 'Delete everything', { class: 'danger' }), button('spare', 'Cancel'));
  const menu = make('div', { class: 'menu', popover: '', role: 'group' },
    button('rename', 'Rename', { title: 'F2' }), button('pin', 'Pin'),
    button('remove', 'Delete', { class: 'danger', title: 'Delete key' }));
  root.classList.add('chats');
  const fresh = button('fresh', 'New chat', { class: 'fresh' });
  root.replaceChildren(fresh, search, fault, panel, told, foot, sure, out, menu);

  // Hugging Face's button is the page's own; Gradio's password has none.
  store.ready.then(({ user }) => {
    out.textContent = `Sign out ${user.replace('user:', '')}`;
    out.hidden = !user.startsWith('user:');
  });

  let shown = [], drawn = '', current = '', asked = null, again = false, renaming = false;
  const chatOf = (id) => shown.find((chat) => chat.id === id);
  const rows = () => [...panel.querySelectorAll('li')];
  const rowOf = (id) => rows().find((row) => row.dataset.id === id);
  const say = (text) => (status.textContent = text);

  // One row is in the order of Tab; the arrow keys go from row to row.
  const rove = (row) => {
    panel.querySelectorAll('[tabindex="0"]').forEach((part) => part.setAttribute('tabindex', -1));
    row?.querySelectorAll('button').forEach((part) => part.setAttribute('tabindex', 0));
  };
  const focus = (row, act = 'open') => {
    rove(row);
    row?.querySelector(`[data-act=${act}]`)?.focus();
  };
  const markCurrent = () => {
    panel.querySelector('[aria-current]')?.removeAttribute('aria-current');
    rowOf(current)?.querySelector('.title').setAttribute('aria-current', 'true');
  };
  const reveal = (row) => { // within the list only: the page around it stays where it is
    const [part, whole] = [row, panel].map((box) => box?.getBoundingClientRect());
    if (part && (part.top < whole.top || part.bottom > whole.bottom)) panel.scrollTop += part.top - whole.top;
  };
  const draw = (chats, text) => {
    const groups = [...grouped(chats, text)];
    const rest = groups.map(([name, own]) => [name, own.map(({ id, title, found }) => [id, title, found])]);
    const now = JSON.stringify([text, rest]);
    const first = !drawn;
    shown = chats;
    if (now === drawn) return; // as while a reply is being written
    drawn = now;
    const part = document.activeElement, act = part?.dataset.act;
    const id = act && panel.contains(part) && part.closest('li').dataset.id;
    panel.replaceChildren(...groups.map((group) => section(group, text.toLowerCase().split(/\s+/)[0])));
    if (!chats.length) panel.append(make('p', { class: 'none' }, text ? 'Nothing found.' : 'No chats yet.'));
    markCurrent();
    rove(rowOf(id || current) ?? rows()[0]);
    if (id) (rowOf(id)?.querySelector(`[data-act=${act}]`) ?? search).focus({ preventScroll: true });
    if (first) reveal(rowOf(current));
  };
  const refresh = async () => {
    asked?.abort(); // the newest question is the one to answer
    const mine = (asked = new AbortController()), text = search.value.trim();
    panel.setAttribute('aria-busy', true);
    try {
      const chats = text ? await store.search(text, mine.signal) : await store.list();
      const { used, where } = await store.room(); // what is left, browsers don't really tell
      if (mine !== asked) return;
      if (renaming) return void (again = true);
      draw(chats, text);
      room.textContent = `${bytes(used)} ${where}`;
      if (text && undo.hidden) say(chats.length ? `${counted(chats.length)} found` : '');
    } catch { // the store tells what is wrong
    } finally {
      if (mine === asked) {
        panel.setAttribute('aria-busy', false);
        asked = null;
        if (again) later();
      }
    }
  };
  const later = () => {
    again = asked !== null || renaming; // a search that runs, and a title that is being written, are left alone
    if (!again) refresh();
  };

  const rename = (id) => {
    const row = rowOf(id), title = row.querySelector('.title');
    const about = { class: 'title', dir: 'auto', maxlength: TITLE_CHARACTERS, 'aria-label': 'Title of this chat' };
    const input = make('input', about);
    input.value = chatOf(id).title;
    let ended = false;
    renaming = true;
    const end = (keep) => {
      if (ended) return; // its removal is a loss of focus too
      ended = true;
      renaming = false;
      const text = input.value.replace(/\s+/g, ' ').trim(), inside = document.activeElement === input;
      input.replaceWith(title);
      if (inside) focus(row);
      if (keep && text && text !== chatOf(id).title) act('retitle', id, text);
      else if (again) later();
    };
    input.addEventListener('blur', () => end(true));
    input.addEventListener('keydown', (event) => {
      if (event.isComposing || !['Enter', 'Escape'].includes(event.key)) return; // Enter also ends a Chinese word
      event.preventDefault();
      end(event.key === 'Enter');
    });
    title.replaceWith(input);
    input.focus();
    input.select();
  };

  let removed = [], clock = null;
  const settle = () => {
    undo.hidden = true;
    say('');
    if (removed.length) act('forget', removed.splice(0));
  };
  const wait = () => {
    clearTimeout(clock);
    if (!undo.hidden) clock = setTimeout(settle, UNDO_MS);
  };
  const remove = async (id) => {
    const all = rows(), row = rowOf(id), place = all.indexOf(row), name = nameOf(chatOf(id));
    if (row.contains(document.activeElement)) focus(all[place + 1] ?? all[place - 1] ?? row);
    await store.remove(id);
    removed.push(id);
    say(removed.length > 1 ? `${counted(removed.length)} deleted` : `Deleted: ${name}`);
    undo.hidden = false;
    wait();
    actions.removed(id);
  };
  const bringBack = async () => {
    const ids = removed.splice(0);
    undo.hidden = true;
    say('Restored');
    for (const id of ids) await store.restore(id);
    await refresh();
    focus(rowOf(ids.at(-1)));
  };
  const ask = (open) => {
    sure.hidden = !open;
    foot.hidden = open;
    (open ? sure : foot).lastChild.focus();
  };
  const clear = async () => {
    ask(false);
    await store.clear();
    removed = [];
    settle();
    if (current) actions.removed(current);
  };
  const showMenu = (id, opener) => {
    menu.dataset.id = id;
    menu.setAttribute('aria-label', nameOf(chatOf(id)));
    menu.children[1].textContent = chatOf(id).pinned ? 'Unpin' : 'Pin';
    menu.showPopover();
    const { bottom, right } = opener.getBoundingClientRect();
    menu.style.top = `${Math.min(bottom, innerHeight - menu.offsetHeight - 8)}px`;
    menu.style.left = `${Math.max(8, right - menu.offsetWidth)}px`;
    opener.setAttribute('aria-expanded', true);
    menu.firstChild.focus();
  };

  const acts = {
    fresh: () => actions.fresh(),
    open: (id) => actions.open(id),
    more: showMenu,
    rename,
    retitle: (id, title) => store.change(id, { title }),
    pin: (id) => store.change(id, { pinned: !chatOf(id).pinned }),
    remove,
    undo: bringBack,
    forget: (ids) => store.forget(ids),
    ask: () => ask(true),
    spare: () => ask(false),
    clear,
  };
  const act = async (name, ...given) => {
    try {
      await acts[name](...given);
    } catch (error) {
      say(error.message);
    }
  };
  root.addEventListener('click', ({ target }) => {
    const pressed = target.closest('[data-act]');
    if (!pressed) return;
    if (menu.contains(pressed)) menu.hidePopover(); // the focus goes back to its row
    act(pressed.dataset.act, pressed.closest('[data-id]')?.dataset.id, pressed);
  });
  menu.addEventListener('toggle', ({ newState }) => {
    if (newState === 'closed') rowOf(menu.dataset.id)?.querySelector('.more').setAttribute('aria-expanded', false);
  });

  const step = (event, parts) => {
    const at = parts.findIndex((part) => part.contains(event.target));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: parts.length - 1 }[event.key];
    if (to === undefined) return null;
    event.preventDefault();
    return parts[Math.max(0, Math.min(to, parts.length - 1))];
  };
  const keysOfRow = (event, row) => {
    const name = { F2: 'rename', Delete: 'remove' }[event.key];
    if (name) act(name, row.dataset.id);
    else if (event.key === 'ArrowRight') focus(row, 'more');
    else if (event.key === 'ArrowLeft') focus(row);
    else if (event.key === 'ArrowUp' && row === rows()[0]) search.focus();
    else return void focusOn(step(event, rows()));
    event.preventDefault();
  };
  const focusOn = (row) => row && focus(row);
  root.addEventListener('keydown', (event) => {
    const { target, key } = event, row = target.closest('li');
    if (key === 'z' && (event.ctrlKey || event.metaKey) && !undo.hidden && !target.matches('input')) act('undo');
    else if (key === 'Escape' && sure.contains(target)) ask(false);
    else if (menu.contains(target)) step(event, [...menu.children])?.focus();
    else if (target === search && key === 'ArrowDown') focus(rows()[0]);
    else if (row && target.matches('button')) keysOfRow(event, row);
  });

  let typing = null;
  search.addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(refresh, search.value ? TYPING_MS : 0);
    if (!search.value && undo.hidden) say('');
  });
  ['pointerenter', 'focusin'].forEach((name) => told.addEventListener(name, () => clearTimeout(clock)));
  ['pointerleave', 'focusout'].forEach((name) => told.addEventListener(name, wait));
  store.addEventListener('change', later);
  store.addEventListener('fault', () => (fault.textContent = store.fault));
  document.addEventListener('visibilitychange', () => document.hidden || later()); // another day, another device
  refresh();
  return {
    refresh,
    current(id) {
      current = id;
      markCurrent();
      if (panel.contains(document.activeElement)) return;
      rove(rowOf(id) ?? rows()[0]);
      reveal(rowOf(id));
    },
  };
} };
