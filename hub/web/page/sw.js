// Works offline: the page, the runtime and the first file of each network are stored at the first
// visit, other files when they are first used. `python -m hub.web` fills in the two constants.

const VERSION = "@VERSION@";
const FILES = ["@FILES@"];
const PREFIX = `${registration.scope} `; // other pages of this origin have caches too

addEventListener("install", (event) => {
  event.waitUntil(store().then(() => skipWaiting()));
});

addEventListener("activate", (event) => {
  event.waitUntil(removeOld().then(() => clients.claim()));
});

addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(registration.scope)) {
    event.respondWith(answer(event.request));
  }
});

async function store() {
  const cache = await caches.open(PREFIX + VERSION);
  await cache.addAll(FILES.map((file) => new Request(file, { cache: "no-cache" })));
}

async function removeOld() {
  const old = (await caches.keys()).filter(
    (name) => name.startsWith(PREFIX) && name !== PREFIX + VERSION,
  );
  await Promise.all(old.map((name) => caches.delete(name)));
}

async function answer(request) {
  const cache = await caches.open(PREFIX + VERSION);
  const stored = await cache.match(request, { ignoreSearch: true });
  if (stored) return stored;
  const response = await fetch(request);
  if (response.status === 200) await cache.put(request, response.clone());
  return response;
}
