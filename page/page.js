// What Gradio does not do itself: fetch pictures that follow the hand, tell when the sliders have come to rest, put them
// where undo or a preset wants them, name parts for screen readers, start a download, undo by keyboard.
(() => {
  const REST = 250; // ms without a movement
  const PAINT = 50; // ms in which the browser shows a picture it has got
  const LONG = 3000; // ms after which a full picture does not wait for the one that follows the hand
  const PATIENCE = 60000; // ms for one picture
  let timer;
  let newest = 0;
  let overruled = 0;
  let turn = Promise.resolve();
  let face = 0;

  const pause = (time) => new Promise((resolve) => { setTimeout(resolve, time); });
  const click = (id) => document.querySelector(id)?.click();

  // A slider moved. One picture is under way at a time; what waits for its turn gives way to a newer movement.
  window.follow = async (bank, paths, levels, values) => {
    clearTimeout(timer);
    const mine = ++newest;
    const era = overruled;
    const before = turn;
    let end;
    turn = new Promise((resolve) => { end = resolve; });
    const done = turn;
    timer = setTimeout(async () => { // after this movement's own picture, which the full one would hold up
      await Promise.race([done.then(() => pause(PAINT)), pause(LONG)]);
      if (mine === newest) click("#settle");
    }, REST);
    await before;
    try {
      if (mine !== newest) return;
      const sent = { strengths: {}, mix: {} };
      paths.forEach((path, index) => { (path.length > 1 ? sent[path[0]] : sent)[path.at(-1)] = values[index]; });
      for (const again of [false, true]) {
        const body = JSON.stringify({ session: window.__gradio_session_hash__, bank, levels, sent, again });
        const signal = AbortSignal.timeout?.(PATIENCE);
        try {
          const answer = await fetch(`${window.gradio_config.root}/frame`, { method: "POST", body, signal });
          const shown = answer.status === 200 ? await answer.json() : null;
          return era === overruled ? shown?.map((value) => value ?? undefined) : undefined;
        } catch { // the answer got lost; if the network stays away, the picture of the sliders at rest will say so
          await pause(1000);
        }
      }
    } finally {
      end();
    }
  };

  // Something else sets the sliders: movements that still wait must not overtake it.
  const overrule = () => {
    clearTimeout(timer);
    newest += 1;
    overruled += 1;
  };
  document.addEventListener("click", (event) => {
    if (event.target.closest("#undo, #redo, #reset-all, #presets .gallery-item, #strip .thumbnail-item")) overrule();
  }, true);

  // The row of small pictures that was chosen; another page of them has none.
  document.addEventListener("click", (event) => {
    const all = [...document.querySelectorAll("#rows .thumbnail-item")];
    const at = all.indexOf(event.target.closest("#rows .thumbnail-item"));
    if (at < 0 && !event.target.closest("#rows-back, #rows-forth, #method")) return;
    all.forEach((each, index) => {
      const chosen = at >= 0 && Math.floor(index / 3) === Math.floor(at / 3);
      each.classList.toggle("chosen", chosen);
      each.setAttribute("aria-pressed", String(chosen));
    });
  }, true);

  // From the server's text to the values at these paths in it; a slider that it does not name stands at 0.
  window.levelsFor = (paths) => (text) => {
    overrule();
    const levels = JSON.parse(text);
    face = levels.face;
    name();
    return paths.map((path) => path.reduce((part, key) => part[key], levels) ?? 0);
  };

  const set = (element, attribute, value) => {
    if (element && element.getAttribute(attribute) !== value) element.setAttribute(attribute, value);
  };
  const name = () => {
    const each = (selector, act) => document.querySelectorAll(selector).forEach(act);
    each("#status", (part) => set(part, "role", "status")); // its text is exchanged, itself stays
    each("#examples button", (button, index) => set(button, "aria-label", `Example ${index + 1}`));
    each("#faces .thumbnail-item", (button, index) => {
      set(button, "aria-label", `Face ${index + 1}`);
      set(button, "aria-pressed", String(index === face));
    });
    each(":is(#sliders, #edge, #mixing) .reset-button", (button) => {
      const label = button.closest(".head")?.querySelector("input")?.getAttribute("aria-label");
      if (label) set(button, "aria-label", label.replace(/^number input for/, "Reset"));
    });
    each("#strip .thumbnail-item", (button) => { // their captions, which only these read, say where the sliders stood
      const words = button.querySelector(".caption-label")?.textContent.trim() ?? "";
      if (!words) return;
      set(button, "aria-label", words.replace(/^Now: /, "Back to: "));
      set(button, "aria-pressed", String(words.startsWith("Now: ")));
      set(button, "title", words);
    });
    each("#compare img", (picture, index) => set(picture, "alt", ["Before", "After"][index]));
  };
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; name(); }, 100);
  }).observe(document, { childList: true, characterData: true, subtree: true });

  document.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    const typing = event.target.matches("textarea, input:not([type=range], [type=radio])");
    if (!(event.ctrlKey || event.metaKey) || event.altKey || typing || !["z", "y"].includes(key)) return;
    event.preventDefault();
    click(key === "y" || event.shiftKey ? "#redo" : "#undo");
  });

  window.downloadReady = () => click("#file a, a#file, #file");
})();
