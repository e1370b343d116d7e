"use strict";
// A page that is open is kept up to date: when something of its topics changed, it is fetched again
// and the parts of it that are marked `data-live` are replaced. Nothing is lost without this script.
(() => {
  const topics = new Set((document.body.dataset.topics || "").split(" ").filter(Boolean));
  const told = document.getElementById("live");
  let waiting = 0;

  // A form that somebody is filling in is not taken out of their hands.
  const busy = (part) => {
    const at = document.activeElement;
    return part.contains(at) && at.matches("input, select, textarea");
  };
  const keptOpen = (part) =>
    new Set([...part.querySelectorAll("details[open][id]")].map((each) => each.id));

  function renew(part, fresh) {
    if (!fresh || busy(part) || part.innerHTML === fresh.innerHTML) return false;
    const open = keptOpen(part);
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    const href = focused && (focused.getAttribute("href") || focused.id);
    part.replaceChildren(...fresh.childNodes);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (href) {
      [...part.querySelectorAll("a, button, [id]")]
        .find((each) => each.getAttribute("href") === href || each.id === href)
        ?.focus({ preventScroll: true });
    }
    return true;
  }

  async function refresh() {
    waiting = 0;
    const here = new URL(location.href);
    here.searchParams.delete("said");
    const reply = await fetch(here, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (!reply.ok) return;
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    const made = "[data-made]"; // of what is drawn from the page's own data: the whole page is new
    if (page.querySelector(made)?.dataset.made !== document.querySelector(made)?.dataset.made) {
      location.reload();
      return;
    }
    let changed = false;
    for (const part of document.querySelectorAll("[data-live][id]")) {
      changed = renew(part, page.getElementById(part.id)) || changed;
    }
    if (changed) told.textContent = `Updated ${new Date().toLocaleTimeString()}`;
  }

  const soon = () => {
    waiting ||= setTimeout(() => refresh().catch(() => {}), 200);
  };

  let source = null;
  function listen() {
    source = new EventSource("/live");
    source.addEventListener("changed", (event) => {
      if (JSON.parse(event.data).some((topic) => topics.has(topic))) soon();
    });
    source.addEventListener("error", () => {
      told.textContent = "The node does not answer; this page is as it was.";
    });
  }
  function rest() {
    source?.close();
    source = null;
  }

  if (topics.size && document.querySelector("[data-live]")) {
    if (!document.hidden) listen();
    // A browser has six connections to a host: pages that nobody looks at must not hold them.
    document.addEventListener("visibilitychange", () => {
      rest();
      if (document.hidden) return;
      listen();
      soon();
    });
    addEventListener("pagehide", rest);
    addEventListener("pageshow", (event) => event.persisted && (listen(), soon()));
  }

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    });
  }
})();
