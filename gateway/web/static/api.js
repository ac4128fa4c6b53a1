// How the gateway is asked: with the token that whoever sits here has given, if he has given one.

const KEY = "nbd-gateway-token";

export class Refused extends Error {
  constructor(status, problems) {
    super(problems.join("; ") || `the gateway has answered ${status}`);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  },
};

/** Take a token from the address (#token=...), and out of it: it is never sent to a server there, nor kept. */
export function takeTokenFromAddress() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return;
  token.set(decodeURIComponent(found[1]));
  history.replaceState(null, "", location.pathname);
}

function headers(more = {}) {
  const said = token.get();
  return said ? { authorization: `Bearer ${said}`, ...more } : more;
}

async function answer(response) {
  const said = await response.json().catch(() => ({ problems: [] }));
  if (!response.ok) throw new Refused(response.status, said.problems ?? []);
  return said;
}

export async function look(path, query = {}) {
  const words = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== null && value !== ""));
  const text = words.size ? `?${words}` : "";
  return answer(await fetch(`/api/v1/${path}${text}`, { headers: headers() }));
}

export async function act(verb, said) {
  return answer(
    await fetch(`/api/v1/${verb}`, {
      method: "POST",
      headers: headers({ "content-type": "application/json" }),
      body: JSON.stringify(said),
    }),
  );
}

/** Hear what changes, until it ends: `hear` is called with the kind and the data of each event. */
export async function listen(hear) {
  const response = await fetch("/api/v1/events", { headers: headers() });
  if (!response.ok) await answer(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const kind = /^event: (.*)$/m.exec(event);
      const data = /^data: (.*)$/m.exec(event);
      if (kind && data) hear(kind[1], JSON.parse(data[1]));
    }
  }
}
