// A button that copies, also where the page is not served over a way that browsers call safe.

import { say } from "./generation.js";

/** Let `button` copy the text of `source`. */
export function copies(button, source) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source); // and there it stays, to be copied by hand, if this fails, too
      if (!document.execCommand("copy")) return say("Selected: copy it with Ctrl C.");
    }
    say("Copied.");
  });
}
