// The page's behaviour that needs no server. Runs once, when the page has been built.
() => {
  const INVISIBLE = /\u2060/g; // what chat/markup.py puts into literal text; it must not be copied
  const find = (selector) => document.querySelector(selector);

  // Chats stand open beside the talk where there is room for both, settings where there is for three.
  if (window.innerWidth > 1000) find('#left:not(.open) .toggle-button')?.click();
  if (window.innerWidth > 1500) find('#right:not(.open) .toggle-button')?.click();

  // Gradio calls both "Toggle Sidebar".
  for (const [side, name] of [['left', 'Chats'], ['right', 'Settings']]) {
    const toggle = find(`#${side} .toggle-button`);
    toggle?.setAttribute('aria-label', name);
    toggle?.setAttribute('title', name);
  }

  const theme = localStorage.getItem('tune2chat-theme');
  if (theme) document.body.classList.toggle('dark', theme === 'dark');

  // Screen readers hear what happens (status), not each token (the chat is a log that speaks by itself).
  const status = find('#status');
  status?.setAttribute('role', 'status');
  status?.setAttribute('aria-live', 'polite');
  // Each paragraph runs in its own language's direction; code stays as it is. A list or a table takes that of
  // its first words, which are not looked for in parts that have a direction of their own: screen.css has those.
  const PARAGRAPHS = ['p:not(li p, blockquote p)', 'ul', 'ol', 'table', 'blockquote', 'h1', 'h2', 'h3', 'h4'];
  const direct = (selector, direction) =>
    document.querySelectorAll(selector).forEach((found) => {
      if (found.dir !== direction) found.dir = direction;
    });
  direct('#box textarea, .sidebar textarea', 'auto');
  const amend = () => {
    direct(`#talk .message :is(${PARAGRAPHS}), #talk .edit-textarea`, 'auto');
    direct('#talk .message :is(pre, code)', 'ltr');
    document.querySelectorAll('#talk pre:not([tabindex])').forEach((code) => (code.tabIndex = 0)); // long lines scroll
    document.querySelectorAll('#talk [role=log]').forEach((log) => log.setAttribute('aria-live', 'off'));
    window.tune2chat.amendMarks();
    // Gradio puts a nameless button into one that folds a thought: the outer one does it all.
    document.querySelectorAll('#talk [role=button] button').forEach((inner) => {
      inner.tabIndex = -1;
      inner.setAttribute('aria-hidden', 'true');
    });
    find('#talk .examples')?.setAttribute('role', 'group'); // its buttons are no items of a list
    find('#talk .edit-textarea')?.setAttribute('aria-label', 'Edited message');
  };
  amend();
  new MutationObserver(amend).observe(find('#talk'), { childList: true, subtree: true });

  // The talk scrolls, not what stands in it: it stays at its end while somebody reads there.
  const talk = find('#talk');
  let atEnd = true;
  talk.addEventListener('scroll', () => (atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60));
  const follow = () => atEnd && (talk.scrollTop = talk.scrollHeight);
  new MutationObserver(follow).observe(talk, { childList: true, subtree: true, characterData: true });
  new ResizeObserver(follow).observe(talk);

  window.tune2chat.start();

  if (navigator.clipboard) {
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = (text) => write(text.replace(INVISIBLE, ''));
  }
  document.addEventListener('copy', (event) => {
    const field = event.target.closest?.('textarea, input');
    const text = field
      ? field.value.slice(field.selectionStart, field.selectionEnd)
      : getSelection().toString();
    if (!INVISIBLE.test(text)) return;
    event.clipboardData.setData('text/plain', text.replace(INVISIBLE, ''));
    event.preventDefault();
  });
}
