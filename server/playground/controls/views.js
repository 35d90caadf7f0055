/** Connects the buttons that choose the visible part of the page on a phone. */
export function viewButtons() {
  const buttons = document.querySelectorAll(".views button");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      document.body.dataset.view = button.dataset.view;
      for (const other of buttons) other.ariaPressed = String(other === button);
    });
  }
}
