// What Gradio's own events cannot say: whether the sliders have come to rest, and when a file is ready.
(() => {
  const REST = 250; // ms without a movement
  let moved = -Infinity;
  let timer;

  const settle = () => document.querySelector("#settle")?.click();

  document.addEventListener("input", (event) => {
    if (!event.target.closest("#sliders")) return;
    moved = performance.now();
    clearTimeout(timer);
    timer = setTimeout(settle, REST);
  }, true);

  // Called as each frame is requested: true asks for the full picture, false lets the server send a preview.
  window.slidersRest = () => performance.now() - moved >= REST - 10;

  window.downloadReady = () => document.querySelector("#file a, a#file, #file")?.click();
})();
