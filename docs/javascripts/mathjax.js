// Settings of MathJax, which reads them when it is loaded.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  // Only the elements that `pymdownx.arithmatex` has marked contain formulas. The menu
  // would load other files.
  options: {
    ignoreHtmlClass: ".*|",
    processHtmlClass: "arithmatex",
    enableMenu: false,
  },
};
