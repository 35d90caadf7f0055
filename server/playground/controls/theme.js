const CHOICES = ["system", "light", "dark"];
const STORED = "smoe-theme";

/** Makes a button switch between the themes; "system" follows the machine. The choice is stored in the browser. */
export function themeButton(button) {
  const show = (choice) => {
    document.documentElement.dataset.theme = choice;
    button.textContent = { system: "◐", light: "○", dark: "●" }[choice];
    button.ariaLabel = button.title = `Theme: ${choice}`;
  };
  button.addEventListener("click", () => {
    const next = CHOICES[(CHOICES.indexOf(document.documentElement.dataset.theme) + 1) % CHOICES.length];
    localStorage.setItem(STORED, next);
    show(next);
  });
  const stored = localStorage.getItem(STORED);
  show(CHOICES.includes(stored) ? stored : "system");
}
