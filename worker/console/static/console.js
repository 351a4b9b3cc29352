// Live refresh, keys, and what makes selecting easier. Everything can be looked at without it.
(() => {
  "use strict";
  const INTERVAL = 2000; // milliseconds
  const OLD = 5; // seconds; an older page says so, and nothing on it is green
  const one = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];

  // --- live: only while the page is visible and no text on it is selected
  const isLive = () => localStorage.getItem("live") !== "off";
  let isWaiting = false;
  let answeredAt = Date.now();

  const refresh = () => {
    const page = one("#live");
    if (!page || !page.hasAttribute("hx-get") || isWaiting || !isLive() || document.hidden) return;
    if (String(getSelection())) return;
    isWaiting = true;
    htmx.trigger(page, "console:refresh");
  };
  const showLive = (text) => {
    const toggle = one("#live-toggle");
    if (!toggle) return;
    toggle.hidden = !one("#live[hx-get]");
    toggle.setAttribute("aria-pressed", String(isLive()));
    // The page may have been old already when it came.
    const age = Math.round((Date.now() - answeredAt) / 1000 + Number(one("#live").dataset.age));
    const isLost = text !== "Live" || age > OLD;
    toggle.classList.toggle("lost", isLost);
    document.body.classList.toggle("lost", isLost);
    one("#live-text").textContent = isLost ? (isFinite(age) ? `${age} s old` : "No answer") : isLive() ? text : "Stopped";
  };
  const toggleLive = () => {
    localStorage.setItem("live", isLive() ? "off" : "on");
    showLive("Live");
    refresh();
  };

  // --- rows: the current one keeps its place by its id
  let current = null;
  const rows = () => all("tr[data-row]");
  const mark = (row) => {
    rows().forEach((each) => each.classList.toggle("current", each === row));
    current = row?.id || null;
    row?.scrollIntoView({ block: "nearest" });
  };
  const move = (step) => {
    const list = rows();
    if (!list.length) return;
    const at = list.findIndex((row) => row.classList.contains("current"));
    mark(list[Math.max(0, Math.min(list.length - 1, at < 0 ? 0 : at + step))]);
  };
  const ofCurrent = (selector) => one(`tr.current ${selector}`);

  // --- selecting
  const picks = () => all('input[name="pick"]');
  const showPicks = () => {
    const count = picks().filter((box) => box.checked).length;
    all("[data-needs-pick]").forEach((button) => {
      if (!button.hasAttribute("aria-describedby")) button.disabled = count === 0;
    });
    const every = one("#pick-all");
    if (every) {
      every.hidden = false;
      every.checked = count > 0 && count === picks().length;
      every.indeterminate = count > 0 && count < picks().length;
    }
  };

  const arrange = () => {
    isWaiting = false;
    const help = one("#help-open");
    if (help) help.hidden = false;
    showPicks();
    if (current) document.getElementById(current)?.classList.add("current");
  };

  document.addEventListener("change", (event) => {
    if (event.target.id === "pick-all") picks().forEach((box) => (box.checked = event.target.checked));
    showPicks();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#live-toggle")) toggleLive();
    if (event.target.closest("#help-open")) one("#help").showModal();
  });

  // --- keys
  let afterG = false;
  const keys = {
    "?": () => one("#help").showModal(),
    j: () => move(1),
    k: () => move(-1),
    l: toggleLive,
    x: () => ofCurrent('input[name="pick"]')?.click(),
    "/": () => one(".filters input:not([type=hidden]), .filters select")?.focus(),
    Enter: () => (ofCurrent("a[data-open]") || ofCurrent("a"))?.click(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !one("dialog[open]")) {
      document.activeElement?.blur();
      all("details.action[open]").forEach((box) => (box.open = false));
    }
    if (event.ctrlKey || event.metaKey || event.altKey || one("dialog[open]")) return;
    if (event.target.closest("input:not([type=checkbox]):not([type=radio]), select, textarea")) return;
    if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
    if (afterG) {
      afterG = false;
      one(`nav a[data-key="${CSS.escape(event.key)}"]`)?.click();
    } else if (event.key === "g") {
      afterG = true;
      setTimeout(() => (afterG = false), 1000);
    } else if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });

  // --- htmx tells how a refresh went
  document.addEventListener("htmx:after:swap", () => {
    answeredAt = Date.now();
    arrange();
    showLive("Live");
  });
  for (const name of ["htmx:error", "htmx:response:error"]) {
    document.addEventListener(name, () => {
      isWaiting = false;
      showLive("No answer");
    });
  }
  document.addEventListener("htmx:finally:request", () => (isWaiting = false));
  document.addEventListener("visibilitychange", refresh);
  setInterval(refresh, INTERVAL);
  setInterval(() => showLive("Live"), INTERVAL / 2);
  arrange();
  showLive("Live");
})();
