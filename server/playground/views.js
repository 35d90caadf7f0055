/** On a phone one part of the page is shown at a time; these buttons choose which. */
export function viewButtons() {
  const buttons = document.querySelectorAll(".views button");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      document.body.dataset.view = button.dataset.view;
      for (const other of buttons) other.ariaPressed = String(other === button);
    });
  }
}
