// What Gradio does not do itself: tell when the sliders have come to rest, put them where undo or a preset wants them,
// name parts for screen readers, start a download, undo by keyboard.
(() => {
  const REST = 250; // ms without a movement
  let moved = -Infinity;
  let timer;
  let face = 0;

  const click = (id) => document.querySelector(id)?.click();

  document.addEventListener("input", (event) => {
    if (!event.target.closest("#sliders, #edge, #mixing")) return;
    moved = performance.now();
    clearTimeout(timer);
    timer = setTimeout(() => click("#settle"), REST);
  }, true);

  // What these set must not be overtaken by a movement before it.
  document.addEventListener("click", (event) => {
    if (event.target.closest("#undo, #redo, #reset-all, #presets, #strip")) clearTimeout(timer);
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

  // Called as each frame is requested: true asks for the full picture, false lets the server send a preview.
  window.slidersRest = () => performance.now() - moved >= REST - 10;

  // From the server's text to the values at these paths in it; a slider that it does not name stands at 0.
  window.levelsFor = (paths) => (text) => {
    clearTimeout(timer); // a hand that moved before this is overruled by it
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
