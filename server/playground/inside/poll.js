/** Runs `action` again and again while the page is visible, `pauseMs` after each end. Returns a function that runs it now. */
export function pollWhileVisible(pauseMs, action) {
  let timer = null;
  let isRunning = false;
  const round = async () => {
    clearTimeout(timer);
    if (isRunning || document.hidden) return;
    isRunning = true;
    try {
      await action();
    } finally {
      isRunning = false;
      timer = setTimeout(round, pauseMs);
    }
  };
  document.addEventListener("visibilitychange", round);
  round();
  return round;
}
