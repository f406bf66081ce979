// Files of chats, in pieces that the app takes at once: an account's export of ChatGPT's has hundreds of megabytes. A
// list is cut between its entries, lines between chats; of a ZIP file the parts that may hold chats are unpacked here.
(() => {
  const LARGEST = 5_500_000; // bytes that the app takes at once, so of one chat
  const PIECE = 2_000_000; // of a file that is larger
  const MAY_HOLD_CHATS = /(?:^|\/)conversations(?:-\d+)?\.json$|\.jsonl$/i; // ChatGPT's has pictures and pages too
  const DAMAGED = 'This ZIP file is damaged, has a password, or is over 4 GB. ' +
    'Unpack it, and open its conversations.json.';
  const END = 0x06054b50, ENTRY = 0x02014b50; // signatures of ZIP (APPNOTE.TXT 4.3.12 and 4.3.16)
  const [QUOTE, BACKSLASH, NEWLINE, OPEN, CLOSE] = Array.from('"\\\n{}', (each) => each.charCodeAt());
  const megabytes = (count) => `${(count / 1e6).toFixed(1)} MB`;

  // Each stream is read as its `read` gives it: not every browser can iterate over one.
  async function* chunksOf(stream) {
    const reader = stream.getReader();
    for (let got; !(got = await reader.read()).done;) yield got.value;
  }
  // The entries of a list in JSON, as they stand in the file: each a list of parts, none where it is too large.
  async function* entriesOf(chunks) {
    let depth = 0, string = false, escaped = false, parts = [], size = 0;
    const add = (part) => {
      size += part.length;
      if (size > LARGEST) parts = [];
      else parts.push(part);
    };
    for await (const chunk of chunks) {
      let from = 0;
      for (let at = 0; at < chunk.length; at++) {
        const byte = chunk[at], bracket = byte | 0x20; // [ and { differ in this bit, as ] and } do
        if (escaped) escaped = false;
        else if (byte === BACKSLASH) escaped = string;
        else if (byte === QUOTE) string = !string;
        else if (string) continue;
        else if (bracket === OPEN) {
          if (depth++ === 1) [from, parts, size] = [at, [], 0];
        } else if (bracket === CLOSE && --depth === 1) {
          add(chunk.subarray(from, at + 1));
          yield parts;
        }
      }
      if (depth > 1) add(chunk.subarray(from));
    }
    if (depth > 0) throw new Error('The file ends in the middle of a chat.');
  }
  async function* linesOf(chunks) {
    let parts = [];
    for await (const chunk of chunks) {
      let from = 0;
      for (let to; (to = chunk.indexOf(NEWLINE, from)) >= 0; from = to + 1) {
        yield [...parts, chunk.subarray(from, to)];
        parts = [];
      }
      parts.push(chunk.subarray(from));
    }
    yield parts;
  }
  const parsed = (text) => {
    try {
      return JSON.parse(text);
    } catch {
      return null;
    }
  };
  // llama.cpp writes a chat as lines: its own, then one a message.
  const goesOn = async (line) => /"type"\s*:\s*"message"/.test(await new Blob(line).slice(0, 100).text());
  // A list of chats may be cut, and a chat a line; one chat may not.
  const cutsOf = async (chunks, head) => {
    if (/^\s*\[/.test(head)) {
      const { value = [] } = await entriesOf(chunks).next().catch(() => ({}));
      const first = parsed(await new Blob(value).text());
      if (!first || !('role' in first)) return [entriesOf, '[', ',', ']'];
    } else if (parsed(head.slice(0, Math.max(0, head.indexOf('\n'))))) return [linesOf, '', '\n', ''];
    throw new Error(`Of one chat at most ${megabytes(LARGEST)} are taken. This file has more, and is no list of chats, ` +
      'nor has it one a line.');
  };
  async function* piecesOf(stream, left) {
    const chunks = chunksOf(stream), head = [];
    let size = 0;
    for (let got; size <= LARGEST && !(got = await chunks.next()).done; size += got.value.length) head.push(got.value);
    if (size <= LARGEST) return yield new Blob(head);
    const [cut, before, between, after] = await cutsOf(head, await new Blob(head).text());
    const whole = async function* () {
      yield* head;
      yield* chunks;
    };
    let piece = [], length = 0;
    for await (const entry of cut(whole())) {
      const more = entry.reduce((sum, part) => sum + part.length, 0);
      if (!entry.length || more > LARGEST) {
        left.push(`chats of more than ${megabytes(LARGEST)} left out`);
        continue;
      }
      if (length + more > PIECE && (length + more > LARGEST || !(await goesOn(entry)))) {
        if (length) yield new Blob([...piece, after]);
        [piece, length] = [[], 0];
      }
      piece.push(length ? between : before, ...entry);
      length += more;
    }
    if (length) yield new Blob([...piece, after]);
  }

  // Where the parts of a ZIP file are that may hold chats; null: it is none.
  const partsOf = async (file) => {
    if ((await file.slice(0, 4).text()) !== 'PK\x03\x04') return null;
    const view = async (from, to) => new DataView(await file.slice(from, to).arrayBuffer());
    try {
      const from = Math.max(0, file.size - 65_557), tail = await view(from, file.size), found = [];
      let end = tail.byteLength - 22;
      while (tail.getUint32(end, true) !== END) end--;
      const at = tail.getUint32(end + 16, true), index = await view(at, at + tail.getUint32(end + 12, true));
      for (let entry = 0; entry < index.byteLength;) {
        const number = (place, bytes = 2) => index[`getUint${8 * bytes}`](entry + place, true);
        const [name, extra, comment] = [28, 30, 32].map((place) => number(place));
        const said = new TextDecoder().decode(new Uint8Array(index.buffer, entry + 46, name));
        const part = { packed: number(10) === 8, locked: number(8) & 1, size: number(20, 4), at: number(42, 4) };
        if (number(0, 4) !== ENTRY || number(20, 4) === 0xffffffff) throw new Error(DAMAGED);
        if (MAY_HOLD_CHATS.test(said)) found.push(part);
        entry += 46 + name + extra + comment;
      }
      for (const part of found) {
        const local = await view(part.at, part.at + 30);
        part.at += 30 + local.getUint16(26, true) + local.getUint16(28, true);
        if (part.locked || part.at + part.size > file.size) throw new Error(DAMAGED);
      }
      return found;
    } catch {
      throw new Error(DAMAGED);
    }
  };
  // The pieces of a file, with how much of it is read when they are; `left` gets what is left out.
  window.tune2chat.pieces = async function* (file, left) {
    const parts = await partsOf(file);
    if (parts?.length === 0) throw new Error('This ZIP file has no conversations.json and no JSONL file.');
    for (const { at, size, packed } of parts ?? [{ at: 0, size: file.size }]) {
      let read = 0;
      const count = new TransformStream({
        transform(chunk, to) {
          read += chunk.length;
          to.enqueue(chunk);
        },
      });
      let stream = file.slice(at, at + size).stream().pipeThrough(count);
      if (packed) stream = stream.pipeThrough(new DecompressionStream('deflate-raw'));
      try {
        for await (const piece of piecesOf(stream, left)) yield { piece, read: at + read };
      } catch (error) {
        throw error instanceof TypeError && parts ? new Error(DAMAGED) : error;
      }
    }
  };
})();
