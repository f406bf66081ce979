// The line to the app. While it is cut the page says so, and nothing is sent that would be lost: `line.cut`, with an
// event when that changes.
(() => {
  const AGAIN_MS = 2000;
  const line = Object.assign(new EventTarget(), { cut: false });
  let clock = null;
  const reached = () => fetch(`${window.gradio_config?.root ?? ''}/health`, { cache: 'no-store' })
    .then(({ ok }) => ok, () => false);
  // A browser that has no network at all reaches an app on its own machine, so the app is asked.
  const look = async () => {
    clearTimeout(clock);
    const cut = !(await reached());
    if (cut !== line.cut) {
      line.cut = cut;
      line.dispatchEvent(new Event('change'));
    }
    if (cut) clock = setTimeout(look, AGAIN_MS);
  };
  for (const name of ['offline', 'online']) window.addEventListener(name, look);
  window.tune2chat.line = line;
})();
