import { byId, on } from "../dom.js";

const SIGNS = { system: "◐", light: "○", dark: "●" }; // "system" follows the machine
const STORED = "smoe-theme";
const button = byId("theme");

function show(choice) {
  document.documentElement.dataset.theme = choice;
  button.textContent = SIGNS[choice];
  button.ariaLabel = button.title = `Theme: ${choice}`;
}

on(button, "click", () => {
  const choices = Object.keys(SIGNS);
  const next = choices[(choices.indexOf(document.documentElement.dataset.theme) + 1) % choices.length];
  localStorage.setItem(STORED, next);
  show(next);
});
const stored = localStorage.getItem(STORED);
show(Object.hasOwn(SIGNS, stored) ? stored : "system");
