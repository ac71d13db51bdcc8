// Replaces the parts of the page that have changed. Without it the page is fetched again now and then.
"use strict";

const connection = document.getElementById("connection");
const source = new EventSource("/live?of=" + encodeURIComponent(location.pathname + location.search));

source.onopen = () => { connection.textContent = "live"; };
source.onerror = () => {
  connection.textContent = "not connected";
  // Another node leads, or this page is not allowed any more: loading it tells.
  if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 2000);
};
source.onmessage = (event) => {
  const fresh = new DOMParser().parseFromString(event.data, "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(part.id);
    if (!next || next.innerHTML === part.innerHTML) continue;
    const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    part.innerHTML = next.innerHTML;
    if (focused) part.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  }
};
