// Wide tables scroll on narrow screens; whoever uses a keyboard must be able to reach them.
window.addEventListener("load", () => {
  for (const table of document.querySelectorAll("article table")) {
    table.tabIndex = 0;
  }
});
