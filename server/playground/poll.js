/** Runs `action` now and `pauseMs` after it has ended, again and again, while the page can be seen. */
export function whileVisible(pauseMs, action) {
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
  return round; // for who wants the next round at once
}
