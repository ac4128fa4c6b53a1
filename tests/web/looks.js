// What a test wants to know of the page, and asks in the page itself.

globalThis.looks ??= (() => {
  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);

  // Relative luminance, and contrast, as WCAG 2 defines them.
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    const [r, g, b] = parts(colour).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      const alpha = parts(colour)[3];
      if (alpha === undefined || alpha > 0.99) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const shown = (element) => element.getClientRects().length > 0;
  // What a chart says is another thing a moment later; its id stays.
  const known = (element) => (element.id ? `#${element.id}` : named(element));
  const named = (element) =>
    [element.tagName, element.id, element.textContent.trim().slice(0, 40), element.getAttribute("aria-label")].join("|");

  return {
    /** Texts whose contrast is less than 4.5. */
    faint() {
      const found = [];
      for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || !shown(element)) continue;
        const style = getComputedStyle(element);
        const colour = element instanceof SVGElement ? style.fill : style.color;
        const [a, b] = [luminance(colour), luminance(ground(element))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${named(element)}`);
      }
      return found;
    },
    /** What can be used, and has to be reached by keyboard. */
    controls: () =>
      [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
        .filter((each) => shown(each) && !each.closest("dialog"))
        .map(known),
    focus: () => known(document.activeElement),
    /** What a screen reader would have no word for. */
    nameless: () =>
      [...document.querySelectorAll("button, a, input, select, summary, [role='img'], [role='region']")]
        .filter(shown)
        .filter((each) => !each.textContent.trim() && !each.getAttribute("aria-label") && !each.labels?.length)
        .map(named),
  };
})();
