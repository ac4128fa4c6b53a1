// The page: what the gateway shows, and what may be done about it.

import { act, listen, look, Refused, takeTokenFromAddress, token } from "/static/api.js";
import { ask, toast } from "/static/ask.js";
import { Chart } from "/static/chart.js";
import { byId, bytes, count, duration, exact, keep, latency, make, named, plural, rate, say } from "/static/dom.js";

const EVERY_MS = 2000;
const HISTORY_SECONDS = 900;
const MOST_LINES = 300;
const BACK_MS = [500, 1000, 2000, 5000];

const page = {
  role: null,
  status: null,
  points: [],
  sessions: [],
  rates: new Map(), // session -> what it did a second, lately
  seen: new Map(), // session -> its bytes when they were last seen
  slow: new Map(), // session -> how many looks in a row it has waited for something other than the server
  moreSessions: false,
  exports: [],
  shownExports: 100,
  lines: [],
  quirks: {},
  findExport: null,
  away: null,
};

const WAITS = {
  pause: "its export to be resumed",
  losses: "what was lost before it came",
  client: "its client",
  throttle: "a policy",
  claim: "another session",
  connection: "a new connection",
  hook: "a policy",
  server: "the server",
};

// --- charts

const throughput = new Chart(byId("chart-throughput"), {
  title: "Throughput",
  series: [
    { name: "read", value: (point) => (point.bytes.READ ?? 0) / point.seconds },
    { name: "written", value: (point) => (point.bytes.WRITE ?? 0) / point.seconds },
  ],
  show: rate,
  base: 1024,
  empty: "Nothing measured yet",
});

const speed = new Chart(byId("chart-latency"), {
  title: "Latency",
  series: [
    { name: "half are faster than", value: (point) => point.latency?.p50 ?? null },
    { name: "99 of 100 faster than", value: (point) => point.latency?.p99 ?? null },
  ],
  show: latency,
  base: 0.001,
  empty: "No request was measured lately",
});

// --- the top, and what needs attention

function showHealth() {
  const health = byId("health");
  let [kind, text] = ["good", "Ready"];
  if (page.away) [kind, text] = ["bad", "Not heard"];
  else if (!page.status) [kind, text] = ["", "Connecting"];
  else if (page.status.draining) [kind, text] = ["warn", "Shutting down"];
  else if (page.status.upstreams.some((each) => each.required && ["down", "disabled"].includes(each.state))) {
    [kind, text] = ["bad", "Not ready"];
  } else if (page.status.listeners.every((each) => each.drained)) [kind, text] = ["warn", "Drained"];
  health.className = `pill ${kind}`;
  say(byId("health-text"), text);
}

function attention() {
  const found = [];
  const add = (kind, text, where, link) => found.push({ kind, text, where, link });
  if (page.away) add("bad", `The gateway is not heard: ${page.away}`);
  const status = page.status;
  if (!status) return found;
  if (status.draining) {
    const waits = status.waits_for_sessions.length ? `, and waits for ${plural(status.sessions, "session", "sessions")}` : "";
    const left = status.sessions_end_in_seconds === null ? "" : `, for ${duration(status.sessions_end_in_seconds)} more`;
    add("warn", `It is shutting down: no export is opened any more${waits}${left}.`, status.sessions ? "#sessions" : null, "Sessions");
  }
  for (const each of status.upstreams) {
    if (each.state === "down") add("bad", `Upstream ${each.upstream} is down${each.why ? `: ${each.why}` : "."}`, "#upstreams", "Upstreams");
    if (each.state === "disabled") add("warn", `Upstream ${each.upstream} is disabled: nobody connects to it.`, "#upstreams", "Upstreams");
  }
  for (const each of page.sessions.filter(isTroubled).slice(0, 5)) {
    const word = each.stuck ? "is stuck" : "is held up";
    const since = each.silent_seconds ? ` for ${duration(each.silent_seconds)}` : "";
    add(each.stuck ? "bad" : "warn", `Session ${each.session} of ${named(each.export)} ${word}${since}: ${each.why}.`, `#session-${each.session}`, "Show it");
  }
  const more = status.stuck_sessions - page.sessions.filter((each) => each.stuck).length;
  // Where all sessions are on the page, the next look at them names it.
  if (more > 0 && page.sessions.length < status.sessions) add("bad", `${plural(more, "session more is", "sessions more are")} stuck.`, "#sessions", "Sessions");
  if (status.paused.length) add("warn", `Paused: ${status.paused.slice(0, 5).map(named).join(", ")}${status.paused.length > 5 ? " and others" : ""}.`, "#exports", "Exports");
  for (const each of status.listeners.filter((one) => one.drained)) add("warn", `${each.listener} takes no more clients.`, "#listeners", "Listeners");
  if (status.disks_with_losses_untold) add("bad", `Of ${plural(status.disks_with_losses_untold, "disk", "disks")} something may be lost that not everybody was told of.`, "#safety", "Losses");
  for (const each of status.certificates) add("warn", `${each.of}: ${each.what}`, "#safety", "Certificates");
  return found;
}

const isTroubled = (session) => session.stuck || (page.slow.get(session.session) ?? 0) >= 2;

function showAttention() {
  const found = attention();
  const worst = found.some((each) => each.kind === "bad") ? "bad" : found.length ? "warn" : "";
  byId("attention").className = `attention ${worst}`;
  const text = !page.status && !page.away ? "Looking" : found.length ? `${plural(found.length, "thing needs", "things need")} attention` : "All is well";
  say(byId("attention-title"), text);
  keep(
    byId("attention-list"),
    found,
    (each) => each.where + each.text.replace(/ for \d.*? (s|min|h|days):/, ""),
    () => make("li", {}, make("span"), make("a")),
    (item, each) => {
      item.className = each.kind;
      say(item.firstChild, each.text);
      const link = item.lastChild;
      link.hidden = !each.where;
      if (each.where) {
        link.href = each.where;
        say(link, each.link);
      }
    },
  );
}

/** How many requests of a command there were, to the last one. */
function requestsOf(totals, command) {
  const number = totals.requests[command] ?? 0;
  return `${exact(number)} ${command}${number === 1 ? "" : "s"}`;
}

function showFigures() {
  const { status } = page;
  const last = page.points.at(-1);
  if (!status) return;
  say(byId("f-sessions"), count(status.sessions));
  const stuck = status.stuck_sessions ? `${status.stuck_sessions} stuck` : "none is stuck";
  say(byId("f-sessions-more"), `${stuck}, ${count(status.totals.sessions)} since the start`);
  const per = (what) => (last ? (last.bytes[what] ?? 0) / last.seconds : 0);
  say(byId("f-read"), rate(per("READ")));
  say(byId("f-write"), rate(per("WRITE")));
  const moved = page.totals ?? status.totals;
  say(byId("f-read-more"), `${bytes(moved.bytes.READ ?? 0)} in all, ${requestsOf(moved, "READ")}`);
  say(byId("f-write-more"), `${bytes(moved.bytes.WRITE ?? 0)} in all, ${requestsOf(moved, "WRITE")}`);
  const sum = (numbers) => Object.values(numbers).reduce((a, b) => a + b, 0);
  say(byId("f-requests"), `${count(last ? sum(last.requests) / last.seconds : 0)}/s`);
  const errors = sum(moved.errors);
  say(byId("f-requests-more"), errors ? `${plural(errors, "has", "have")} failed since the start` : "none has failed");
  const quick = page.points.findLast((each) => each.latency);
  say(byId("f-latency"), quick ? latency(quick.latency.p50) : "–");
  say(byId("f-latency-more"), quick ? `99 of 100 within ${latency(quick.latency.p99)}` : "nothing measured lately");
  throughput.set(page.points);
  speed.set(page.points);
}

// --- tables

function cells(labels) {
  return labels.map(([label, kind]) => make("td", { class: kind ?? null, "data-label": label }));
}

function fill(cell, text, more) {
  if (cell.children.length < 2 && !cell.dataset.filled) {
    cell.append(make("span"));
    cell.firstChild.append(make("span"), make("span", { class: "more" }));
    cell.dataset.filled = "yes";
  }
  const [first, second] = cell.firstChild.children;
  say(first, text);
  say(second, more ?? "");
  second.hidden = !more;
}

function state(cell, kind, text, more) {
  fill(cell, text, more);
  cell.firstChild.firstChild.className = `state ${kind}`;
}

function action(cell, name, label, does, there) {
  if (!cell.firstChild) cell.append(make("span"));
  let button = [...cell.firstChild.children].find((each) => each.dataset.does === name);
  const shown = there && page.role === "full";
  if (!button && shown) {
    button = make("button", { type: "button", "data-does": name });
    cell.firstChild.append(button);
  }
  if (!button) return;
  button.hidden = !shown;
  say(button, label);
  button.onclick = does;
}

function actionsAreThere(cell) {
  const some = [...(cell.firstChild?.children ?? [])].some((each) => !each.hidden);
  cell.classList.toggle("nothing", !some);
}

const worth = (session) => {
  const done = page.rates.get(session.session) ?? { READ: 0, WRITE: 0 };
  return (session.stuck ? 1e18 : 0) + (isTroubled(session) ? 1e15 : 0) + done.READ + done.WRITE;
};

function showSessions() {
  const rows = [...page.sessions].sort((a, b) => worth(b) - worth(a));
  keep(
    byId("rows-sessions"),
    rows,
    (each) => each.session,
    (each) => {
      const row = make("tr", { id: `session-${each.session}`, tabindex: "-1" });
      row.append(
        ...cells([["Client"], ["Export"], ["Read", "num"], ["Written", "num"], ["In flight", "num"], ["Waits for"], ["Here for", "num"], ["", "actions"]]),
      );
      const more = make("details", {}, make("summary", {}, "Details"), make("dl"));
      fill(row.children[0], "", "");
      row.children[0].firstChild.append(more);
      return row;
    },
    (row, each) => {
      const [client, export_, read, written, flight, waits, here, actions] = row.children;
      const done = page.rates.get(each.session);
      fill(client, each.who.split(" ")[0], `${each.session}${each.tls ? ` · ${each.tls}` : ""}`);
      fill(export_, named(each.export), `${each.upstream}${each.read_only ? " · read-only" : ""}`);
      fill(read, done ? rate(done.READ) : "–", `${bytes(each.bytes.READ ?? 0)}`);
      fill(written, done ? rate(done.WRITE) : "–", `${bytes(each.bytes.WRITE ?? 0)}`);
      fill(flight, count(each.in_flight));
      if (each.stuck) state(waits, "bad", `Stuck: ${WAITS[each.waits_for] ?? "something"}`, `${each.why}${each.silent_seconds ? `, for ${duration(each.silent_seconds)}` : ""}`);
      else if (isTroubled(each)) state(waits, "warn", capital(WAITS[each.waits_for] ?? each.waits_for), each.why);
      else if (each.waits_for) state(waits, "good", capital(WAITS[each.waits_for] ?? each.waits_for));
      else state(waits, "idle", "Nothing");
      fill(here, duration(each.seconds));
      detail(row.querySelector("dl"), each);
      action(actions, "disconnect", "Disconnect…", () => askDisconnect(each), true);
      actionsAreThere(actions);
    },
  );
  byId("none-sessions").hidden = page.sessions.length > 0;
  const filtered = byId("find-who").value || byId("find-stuck").checked || page.findExport !== null;
  const none = page.moreSessions ? "" : filtered ? "No session fits." : "Nobody is connected.";
  say(byId("none-sessions"), none);
  if (page.moreSessions) {
    byId("none-sessions").hidden = false;
    say(byId("none-sessions"), `The first ${page.sessions.length} are shown. Find the others by identity or export.`);
  }
  const chip = byId("find-export");
  chip.hidden = page.findExport === null;
  if (page.findExport !== null) say(chip, `only ${named(page.findExport)}  ✕`);
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function detail(list, session) {
  const plan = Object.entries(session.plan ?? {}).map(([way, commands]) => `${way}: ${commands.join(", ")}`);
  const facts = [
    ["Who", session.who],
    ["Listener", session.listener],
    ["Plan", plan.join("; ") || "–"],
    ["Connections", `${session.connections}${session.shared ? ", shared with others" : ""}`],
    ["Requests", Object.entries(session.requests).map(([name, number]) => `${name} ${exact(number)}`).join(", ") || "none"],
    ["Bytes", Object.entries(session.bytes).map(([name, number]) => `${name} ${exact(number)}`).join(", ") || "none"],
    ["Errors", Object.entries(session.errors).map(([name, number]) => `${name} ${exact(number)}`).join(", ") || "none"],
  ];
  keep(
    list,
    facts.flatMap(([name, text]) => [{ key: `${name}:`, tag: "dt", text: name }, { key: name, tag: "dd", text }]),
    (each) => each.key,
    (each) => make(each.tag),
    (element, each) => say(element, each.text),
  );
}

function showExports() {
  const rows = page.exports.slice(0, page.shownExports);
  keep(
    byId("rows-exports"),
    rows,
    (each) => `=${each.export}`,
    () => {
      const row = make("tr");
      row.append(...cells([["Export"], ["Upstream"], ["Sessions", "num"], ["Read in all", "num"], ["Written in all", "num"], ["Errors"], ["State"], ["", "actions"]]));
      return row;
    },
    (row, each) => {
      const [name, upstream, sessions, read, written, errors, is, actions] = row.children;
      const totals = each.totals;
      fill(name, named(each.export));
      fill(upstream, each.upstream ?? "nowhere any more", each.switched ? "switched there" : null);
      if (!sessions.firstChild) sessions.append(make("button", { class: "plain", type: "button" }));
      say(sessions.firstChild, count(each.sessions));
      sessions.firstChild.setAttribute("aria-label", `${plural(each.sessions, "session", "sessions")} of ${named(each.export)}: show only these`);
      sessions.firstChild.onclick = () => {
        page.findExport = each.export;
        location.hash = "#sessions";
        refresh();
      };
      fill(read, bytes(totals.bytes.READ ?? 0), requestsOf(totals, "READ"));
      fill(written, bytes(totals.bytes.WRITE ?? 0), requestsOf(totals, "WRITE"));
      const failed = Object.entries(totals.errors).map(([what, number]) => `${what} ${count(number)}`);
      fill(errors, failed.slice(0, 3).join(", ") || "none", failed.length > 3 ? `and ${failed.length - 3} kinds more` : null);
      if (each.paused) state(is, "warn", "Paused", `by ${each.paused_by}`);
      else if (each.upstream === null) state(is, "bad", "Leads nowhere");
      else if (each.sessions) state(is, "good", "In use");
      else state(is, "idle", "Not in use");
      action(actions, "pause", "Pause…", () => askPause(each), !each.paused);
      action(actions, "resume", "Resume", () => done("resume", { export: each.export }), each.paused);
      actionsAreThere(actions);
    },
  );
  byId("none-exports").hidden = page.exports.length > 0;
  const more = byId("more-exports");
  more.hidden = page.exports.length <= page.shownExports && !page.moreExports;
  say(more, page.exports.length > page.shownExports ? `Show ${page.exports.length - page.shownExports} more` : "Show more exports");
}

function showUpstreams() {
  keep(
    byId("rows-upstreams"),
    page.status.upstreams,
    (each) => `=${each.upstream}`,
    () => {
      const row = make("tr");
      row.append(...cells([["Upstream"], ["State"], ["Sessions", "num"], ["Connections", "num"], ["What is mended"], ["", "actions"]]));
      row.children[4].append(make("ul"));
      return row;
    },
    (row, each) => {
      const [name, is, sessions, connections, mended, actions] = row.children;
      fill(name, each.upstream, each.servers.join(", ") || "in the gateway itself, or started by it");
      const required = each.required ? "required" : null;
      if (each.state === "up") state(is, "good", "Up", required);
      else if (each.state === "down") state(is, "bad", "Down", each.why ?? required);
      else if (each.state === "disabled") state(is, "warn", "Disabled", required);
      else state(is, "idle", "Not tried lately", required);
      fill(sessions, count(each.sessions));
      fill(connections, each.most_connections ? `${each.connections} of ${each.most_connections}` : count(each.connections));
      const quirks = Object.entries(each.repaired);
      keep(
        mended.firstChild,
        quirks.length ? quirks : [[null, 0]],
        ([quirk]) => quirk ?? "-",
        () => make("li", {}, make("span"), make("span", { class: "more" })),
        (item, [quirk, times]) => {
          say(item.firstChild, quirk === null ? "Nothing" : page.quirks[quirk] ?? quirk);
          say(item.lastChild, quirk === null ? "" : `${quirk}, for ${plural(times, "session", "sessions")}`);
          item.className = quirk === null ? "quiet" : "";
        },
      );
      action(actions, "disable", "Disable…", () => askDisable(each), each.state !== "disabled");
      action(actions, "enable", "Enable", () => done("enable", { upstream: each.upstream }), each.state === "disabled");
      actionsAreThere(actions);
    },
  );
}

function showListeners() {
  keep(
    byId("rows-listeners"),
    page.status.listeners,
    (each) => each.listener,
    () => {
      const row = make("tr");
      row.append(...cells([["Address"], ["TLS"], ["Clients", "num"], ["State"], ["", "actions"]]));
      return row;
    },
    (row, each) => {
      const [address, tls, clients, is, actions] = row.children;
      fill(address, each.listener);
      fill(tls, { off: "none", allow: "who wants it", require: "required" }[each.tls] ?? each.tls);
      fill(clients, `${each.clients} of ${each.most_clients}`);
      if (each.drained) state(is, "warn", "Takes no more clients");
      else if (each.clients >= each.most_clients) state(is, "bad", "Full");
      else state(is, "good", "Takes clients");
      action(actions, "drain", "Drain…", () => askDrain(each), !each.drained);
      action(actions, "undrain", "Take clients", () => done("undrain", { listener: each.listener }), each.drained);
      actionsAreThere(actions);
    },
  );
}

function showSafety(losses) {
  byId("no-losses").hidden = losses.length > 0;
  keep(
    byId("losses"),
    losses,
    (each) => each.disk,
    () => make("li", {}, make("span"), make("span", { class: "quiet" })),
    (item, each) => {
      say(item.firstChild, each.disk);
      const size = each.bytes === null ? "" : ` (${bytes(each.bytes)})`;
      const who = each.sessions_not_told ? `; ${plural(each.sessions_not_told, "session is", "sessions are")} not told yet` : "";
      say(item.lastChild, ` ${each.why.join("; ")}${size}${who}`);
    },
  );
  const terms = page.status.certificates;
  byId("no-certificates").hidden = terms.length > 0;
  keep(byId("certificates"), terms, (each) => each.of + each.what, () => make("li"), (item, each) => say(item, `${each.of}: ${each.what}`));
}

function showLog() {
  const least = byId("log-level").value;
  const lines = page.lines.filter((each) => least === "all" || ["warning", "error"].includes(each.level)).reverse();
  keep(
    byId("log-lines"),
    lines,
    (each) => each.number,
    (each) => {
      const at = new Date(each.time * 1000);
      const fields = Object.entries(each.fields).filter(([, value]) => value !== "" && value !== null);
      return make(
        "li",
        { class: each.level },
        make("time", { datetime: at.toISOString() }, at.toLocaleTimeString([], { hour12: false })),
        make("span", { class: "level" }, each.level),
        make("span", {}, make("span", { class: "event" }, each.event), " ", make("span", { class: "fields" }, fields.map(([name, value]) => `${name}=${value}`).join("  "))),
      );
    },
    () => {},
  );
  byId("none-log").hidden = lines.length > 0;
}

function showCounts() {
  const { status } = page;
  say(byId("count-sessions"), count(status.sessions));
  say(byId("count-exports"), page.moreExports ? `${page.exports.length}+` : String(page.exports.length));
  say(byId("count-upstreams"), String(status.upstreams.length));
  say(byId("count-listeners"), String(status.listeners.length));
}

function showAll() {
  showHealth();
  showAttention();
  if (!page.status) return;
  showFigures();
  showUpstreams();
  showListeners();
  showCounts();
  const { version, uptime_seconds: up } = page.status;
  say(byId("about"), `${version}, up for ${duration(page.up ?? up)}`);
}

// --- what is done, with the confirmation that each deserves

async function done(verb, said) {
  const answer = await attempt(verb, said);
  if (answer.problem) toast(answer.problem, "bad");
}

/** Do it, say what came of it, and look again; gives what is in the way. */
async function attempt(verb, said) {
  try {
    const answer = await act(verb, said);
    toast([...answer.done, ...answer.problems].join(". ") || "Done");
    await refresh();
    return {};
  } catch (error) {
    await refresh();
    return { problem: error.message };
  }
}

function askDisconnect(session) {
  ask({
    title: `Disconnect ${session.session}?`,
    text: `The session of ${session.who.split(" ")[0]} at export ${named(session.export)} ends: what is under way is answered first. Its client may come back at once.`,
    fields: [{ name: "reason", label: "Reason, for the log", type: "text" }],
    yes: "Disconnect",
    danger: true,
    does: ({ reason }) => attempt("disconnect", { session: session.session, ...(reason ? { reason } : {}) }),
  });
}

function askPause(one) {
  ask({
    title: `Pause ${named(one.export)}?`,
    text: `Its ${plural(one.sessions, "session begins", "sessions begin")} nothing new, all is flushed, and clients wait until it is resumed. A machine whose disk this is stands still meanwhile.`,
    fields: [{ name: "for", label: "Resume by itself after so many seconds", type: "number", value: 300, min: 1, max: 3600 }],
    yes: "Pause",
    danger: true,
    does: (said) => attempt("pause", { export: one.export, for: Number(said.for) }),
  });
}

function askDisable(upstream) {
  ask({
    title: `Disable ${upstream.upstream}?`,
    text: `Nobody is connected to it any more: who opens an export there is refused. Its ${plural(upstream.sessions, "session goes", "sessions go")} on.`,
    yes: "Disable",
    does: () => attempt("disable", { upstream: upstream.upstream }),
  });
}

function askDrain(listener) {
  ask({
    title: "Take no more clients?",
    text: `New connections to ${listener.listener} are turned away. The ${plural(listener.clients, "client", "clients")} that ${listener.clients === 1 ? "is" : "are"} there stay${listener.clients === 1 ? "s" : ""}.`,
    yes: "Drain",
    does: () => attempt("drain", { listener: listener.listener }),
  });
}

function askToken(why) {
  ask({
    title: "Sign in",
    text: why ?? "The token is kept until this tab is closed.",
    fields: [{ name: "token", label: "Token", type: "password", needed: true }],
    yes: "Sign in",
    does: async (said) => {
      token.set(said.token.trim());
      try {
        await whoAmI();
      } catch (error) {
        token.set(null);
        return { problem: error.message };
      }
      begin();
      return {};
    },
  });
}

// --- what is heard

function hear(kind, data) {
  page.away = null;
  if (kind === "status") page.status = data;
  if (kind === "away") page.away = data.why;
  if (kind === "point") {
    page.points.push(data);
    const oldest = data.time - HISTORY_SECONDS;
    while (page.points.length && page.points[0].time < oldest) page.points.shift();
    if (page.status) page.status = { ...page.status, sessions: data.sessions, stuck_sessions: data.stuck_sessions };
  }
  if (kind === "log") {
    const newest = page.lines.at(-1)?.number ?? 0;
    page.lines.push(...data.filter((each) => each.number > newest));
    page.lines.splice(0, page.lines.length - MOST_LINES);
    showLog();
  }
  showAll();
}

function noteRates(sessions) {
  const now = performance.now() / 1000;
  const seen = new Map();
  const rates = new Map();
  const slow = new Map();
  for (const each of sessions) {
    const total = { at: now, READ: each.bytes.READ ?? 0, WRITE: each.bytes.WRITE ?? 0 };
    const before = page.seen.get(each.session);
    if (before && now - before.at < 0.5) {
      seen.set(each.session, before);
      rates.set(each.session, page.rates.get(each.session));
    } else {
      seen.set(each.session, total);
      if (before) {
        const seconds = now - before.at;
        rates.set(each.session, { READ: (total.READ - before.READ) / seconds, WRITE: (total.WRITE - before.WRITE) / seconds });
      }
    }
    const held = each.waits_for && each.waits_for !== "server" && each.waits_for !== "pause";
    if (held) slow.set(each.session, (page.slow.get(each.session) ?? 0) + 1);
  }
  Object.assign(page, { seen, rates, slow });
}

let turn = 0;

/** Look at what is not told by itself: sessions and exports, a page of each. */
async function refresh() {
  const mine = ++turn;
  const query = { who: byId("find-who").value.trim(), export: page.findExport ?? "", stuck: byId("find-stuck").checked ? "true" : "" };
  if (page.findExport === "") query.export = null; // the default export cannot be asked for by an empty text here
  const [status, sessions, exports] = await Promise.all([look("status"), look("sessions", query), look("exports")]);
  if (mine !== turn) return;
  page.status = status;
  page.totals = status.totals;
  page.up = status.uptime_seconds;
  page.away = null;
  page.sessions = page.findExport === "" ? sessions.sessions.filter((each) => each.export === "") : sessions.sessions;
  page.moreSessions = sessions.more;
  page.exports = exports.exports;
  page.moreExports = exports.more;
  for (let more = exports.more; more && page.exports.length < page.shownExports; ) {
    const next = await look("exports", { after: page.exports.at(-1).export });
    page.exports.push(...next.exports);
    page.moreExports = more = next.more;
  }
  noteRates(page.sessions);
  showAll();
  showSessions();
  showExports();
  const losses = status.disks_with_losses_untold ? (await look("losses")).losses : [];
  showSafety(losses);
}

const sleep = (ms) => new Promise((over) => setTimeout(over, ms));

async function whoAmI() {
  const me = await look("me");
  page.role = me.role;
  say(byId("me"), me.role === "full" ? `${me.name.split(" ")[0]} may do everything` : "may look");
  const button = byId("sign-in");
  button.hidden = false;
  say(button, token.get() ? "Sign out" : "Sign in");
}

async function keepLooking(run) {
  while (run === running) {
    if (document.visibilityState === "visible") {
      try {
        await refresh();
      } catch (error) {
        notHeard(error);
      }
    }
    await sleep(EVERY_MS);
  }
}

async function keepListening(run) {
  let tries = 0;
  while (run === running) {
    try {
      const history = await look("history");
      page.points = history.points;
      const log = await look("log");
      page.lines = log.lines;
      showLog();
      tries = 0;
      await listen((kind, data) => run === running && hear(kind, data));
    } catch (error) {
      notHeard(error);
    }
    await sleep(BACK_MS[Math.min(tries++, BACK_MS.length - 1)]);
  }
}

function notHeard(error) {
  if (error instanceof Refused && error.status === 401) {
    running = null;
    signInFirst();
    return;
  }
  page.away = error instanceof Refused ? error.message : "no connection to it";
  showHealth();
  showAttention();
}

function signInFirst() {
  byId("sign-in").hidden = false;
  say(byId("sign-in"), "Sign in");
  say(byId("health-text"), "Sign in to look");
  if (!byId("ask").open) askToken(token.get() ? "This token is not valid any more." : "To look at this gateway takes a token. It is kept until this tab is closed.");
}

let running = null;

async function begin() {
  running = {};
  const run = running;
  try {
    await whoAmI();
    page.quirks = await look("quirks");
  } catch (error) {
    notHeard(error);
    if (run !== running) return;
    await sleep(BACK_MS[1]);
    if (run === running) begin();
    return;
  }
  keepLooking(run);
  keepListening(run);
}

// --- the page itself

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  say(byId("theme"), `Theme: ${theme}`);
  localStorage.setItem("nbd-gateway-theme", theme);
}

byId("theme").addEventListener("click", () => {
  const now = localStorage.getItem("nbd-gateway-theme") ?? "auto";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
byId("sign-in").addEventListener("click", () => {
  if (!token.get()) return askToken();
  token.set(null);
  page.role = null;
  begin();
});
byId("find").addEventListener("submit", (event) => event.preventDefault());
let typing = null;
byId("find-who").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => refresh().catch(notHeard), 250);
});
byId("find-stuck").addEventListener("change", () => refresh().catch(notHeard));
byId("find-export").addEventListener("click", () => {
  page.findExport = null;
  byId("find-who").focus();
  refresh().catch(notHeard);
});
byId("more-exports").addEventListener("click", () => {
  page.shownExports += 200;
  refresh().catch(notHeard);
});
byId("log-level").addEventListener("change", showLog);
addEventListener("hashchange", () => {
  const row = document.querySelector(`tr[id="${CSS.escape(location.hash.slice(1))}"]`);
  if (!row) return;
  row.classList.add("flash");
  row.focus({ preventScroll: true });
  setTimeout(() => row.classList.remove("flash"), 1500);
});

const parts = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const inView = new Set();
const spy = new IntersectionObserver(
  (entries) => {
    for (const each of entries) inView[each.isIntersecting ? "add" : "delete"](each.target.id);
    const first = [...parts.keys()].find((id) => inView.has(id));
    for (const [id, link] of parts) {
      if (id === first) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  },
  { rootMargin: "-110px 0px -55% 0px" },
);
for (const id of parts.keys()) spy.observe(byId(id));

setTheme(localStorage.getItem("nbd-gateway-theme") ?? "auto");
takeTokenFromAddress();
begin();
