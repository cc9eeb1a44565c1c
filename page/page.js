// What Gradio does not do itself: tell when the sliders have come to rest, name the examples, start a download.
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

  // Gradio leaves the pictures of its example row without names.
  const naming = new MutationObserver(() => {
    const examples = document.querySelectorAll("#examples button");
    examples.forEach((button, index) => button.setAttribute("aria-label", `Example ${index + 1}`));
    if (examples.length) naming.disconnect();
  });
  naming.observe(document, { childList: true, subtree: true });

  window.downloadReady = () => document.querySelector("#file a, a#file, #file")?.click();
})();
