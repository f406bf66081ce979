// Files that come in and go out: text files become part of the message, chats are saved and opened. All are read in
// the browser, and nothing of them stays in a temporary folder.
(() => {
  const page = window.tune2chat, { store } = page;
  const LARGEST_TEXT = 1_000_000; // characters of a message that has files in it
  const WIDE = { '255,254': 'utf-16le', '254,255': 'utf-16be' }; // as some editors of Windows' begin a text
  const find = (selector) => document.querySelector(selector);

  page.save = ({ text, name, type }) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  // A chat is renamed and pinned in the list, which tells the store and not the app.
  page.saveAs = async (format) => {
    const { title, pinned } = (await store.read(page.current()).catch(() => null))?.chat ?? {};
    page.act('export', { format, title, pinned });
  };

  const inBase64 = (blob) => new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.split(',')[1] ?? '');
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });
  // Each piece is sent when the one before it is kept: what came in stays, whatever happens to the rest.
  const bring = async (file, brought) => {
    const own = (await store.list().catch(() => [])).map(({ id }) => ({ id }));
    for await (const { piece, read } of page.pieces(file, brought.left)) {
      const begins = !brought.chats.length;
      const told = await page.ask('import', { data: await inBase64(piece), own, begins, read, size: file.size });
      if (told.failed) return false; // the app says why
      for (const rows of told.came) {
        await store.put(rows, true);
        brought.chats.push(rows.chat.id);
      }
    }
    return true;
  };
  const take = async (file) => {
    const brought = { chats: [], left: [] }, shown = page.current();
    page.say('');
    try {
      if (!(await bring(file, brought))) return;
    } catch (error) {
      const came = brought.chats.length ? ` ${brought.chats.length.toLocaleString('en')} chats of it came in.` : '';
      return page.say(`${file.name}: ${error.message}${came}`);
    }
    const [first] = brought.chats;
    if (!first) return page.say(`${file.name}: Of one chat at most 5.5 MB are taken, and none here is smaller.`);
    // With what was there of it already. Who went on to another chat meanwhile stays there.
    page.open(page.current() === shown ? first : page.current(), { came: true, left: brought.left });
  };
  page.openFile = () => {
    const accept = '.json,.jsonl,.zip';
    const input = Object.assign(document.createElement('input'), { type: 'file', accept, id: 'file' });
    input.onchange = () => input.files[0] && take(input.files[0]);
    input.click();
  };

  const textOf = async (file) => {
    const size = `${(file.size / 1e6).toFixed(1)} MB`;
    if (file.size > 2 * LARGEST_TEXT) throw new Error(`${file.name} has ${size}; at most 1 MB is taken.`);
    const bytes = new Uint8Array(await file.arrayBuffer().catch(() => {
      throw new Error(`${file.name} can not be read. Is it a folder?`);
    }));
    try {
      const text = new TextDecoder(WIDE[bytes.subarray(0, 2)] ?? 'utf-8', { fatal: true }).decode(bytes);
      if (!text.includes('\0')) return text;
    } catch {} // neither UTF-8 nor UTF-16
    throw new Error(`${file.name} is not a text file.`);
  };
  const fence = (text) => '`'.repeat(Math.max(3, ...(text.match(/`+/g) ?? []).map((ticks) => ticks.length + 1)));
  // It goes nowhere before it is sent.
  const insert = async (file) => {
    const box = find('#box textarea'), text = await textOf(file), ticks = fence(text);
    const part = `${file.name}:\n${ticks}\n${text.replace(/\n$/, '')}\n${ticks}\n`;
    const whole = box.value + (box.value && !box.value.endsWith('\n') ? '\n' : '') + part;
    if (whole.length > LARGEST_TEXT) throw new Error(`With ${file.name} the message would have more than 1 MB.`);
    page.write(whole);
  };
  const attach = async (files) => {
    const box = find('#box textarea'), before = box.value, faults = [];
    page.say('');
    for (const file of files) await insert(file).catch(({ message }) => faults.push(message));
    const more = faults.length > 3 ? ` And ${faults.length - 3} more.` : '';
    page.say(faults.slice(0, 3).join(' ') + more);
    box.focus();
    if (box.value !== before) page.act('count', { text: box.value });
  };
  // A file that is dropped beside the box is meant for it too: the browser would show it in the page's place.
  page.takeFiles = (box) => {
    const drop = (event) => {
      const files = [...(event.dataTransfer ?? event.clipboardData)?.files ?? []];
      if (!files.length) return;
      event.preventDefault();
      event.stopPropagation();
      attach(files);
    };
    const over = (event) => event.dataTransfer?.types.includes('Files') && event.preventDefault();
    document.addEventListener('dragover', over, true);
    document.addEventListener('drop', drop, true);
    box.addEventListener('paste', drop, true);
    box.addEventListener('input', () => page.say('')); // what was wrong with a file is read by now
  };
})();
