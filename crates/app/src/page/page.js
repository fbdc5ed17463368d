'use strict';

// Shows what /events tells: the same report that `ethhook status` shows. All of it is set as text,
// never as markup: names of groups and words of nodes are whoever's.

const POLL_MS = 5000;
const LOST_MS = 10000;
const STATES = {
  following: 'at its head',
  catching_up: 'catching up',
  standing_by: 'standing by',
  stalled: 'stalled',
  unknown: 'unknown',
};
let heard = Date.now();

function node(tag, attributes, ...children) {
  const svg = tag === 'svg' || tag === 'polyline';
  const made = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function spoken(seconds) {
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

const number = (value) => (value === null ? '–' : value.toLocaleString('en'));

function figure(name, label, text) {
  return node('div', {}, node('dt', {}, label), node('dd', { 'data-field': name }, text));
}

function sparkline(rates) {
  const top = Math.max(1, ...rates);
  const step = 120 / Math.max(1, rates.length - 1);
  const points = rates.map((rate, i) => `${(i * step).toFixed(2)},${(29 - (28 * rate) / top).toFixed(2)}`);
  const label = `Events per second in the last ${rates.length} s, at most ${top}`;
  const graph = { viewBox: '0 0 120 30', preserveAspectRatio: 'none', role: 'img', 'aria-label': label };
  return node('svg', graph, node('polyline', { points: points.join(' ') }));
}

function trouble(found, chain) {
  const level = found.level === 'error' ? 'Error' : 'Warning';
  return node('div', { class: `trouble ${found.level}`, role: 'alert' },
    node('b', {}, `${level}: `), chain ? `${chain}: ${found.what}` : found.what,
    node('span', {}, `What to do: ${found.to_do}`));
}

function table(headings, rows) {
  const head = node('tr', {}, ...headings.map((heading) => node('th', {}, heading)));
  const line = (row) => node('tr', {}, ...row.map((cell) => node('td', {}, cell)));
  return node('table', {}, node('thead', {}, head), node('tbody', {}, ...rows.map(line)));
}

function chain(of) {
  const lag = of.lag_blocks === null ? '–' : `${number(of.lag_blocks)} blocks`;
  const late = of.lag_seconds === null ? '' : `, ${spoken(of.lag_seconds)}`;
  const rate = of.events_per_second === null ? '–' : of.events_per_second.toFixed(1);
  const stream = of.entries === null ? '–' : `${number(of.entries)}, ${(of.bytes / 1e6).toFixed(1)} MB`;
  const written = of.last_step_seconds === null ? '–' : `${spoken(of.last_step_seconds)} ago`;
  const counts = of.counts || { reorgs: null, taken_back: null };
  const card = node('article', { class: 'chain', id: `chain-${of.name}` },
    node('div', { class: 'title' },
      node('h2', {}, of.name),
      node('span', { class: `state ${of.state}`, 'data-field': 'state' }, STATES[of.state] || of.state)),
    node('dl', {},
      figure('head', 'Head', number(of.head)),
      figure('published', 'Published', number(of.published)),
      figure('finalized', 'Finalized', number(of.finalized)),
      figure('lag', 'Lag', lag + late),
      figure('rate', 'Events per second', rate),
      figure('reorgs', 'Reorgs', number(counts.reorgs)),
      figure('entries', 'In the stream', stream),
      figure('taken_back', 'Taken back', number(counts.taken_back)),
      figure('written', 'Last written', written)),
    sparkline(of.rates));
  if (of.endpoints.length) {
    const heads = { true: 'yes', false: 'no', null: 'no WebSocket' };
    card.append(table(['Endpoint', 'Breaker', 'Heads', 'Failed checks', 'Calls a second'], of.endpoints.map((end) =>
      [String(end.position), end.breaker.replace('_', '-'), heads[end.subscribed], number(end.failed_checks),
        end.calls_per_second === null ? 'no limit met' : `about ${end.calls_per_second}`])));
  }
  if (of.groups.length) {
    card.append(table(['Group', 'Behind', 'Waiting', 'Pending', 'Consumers'], of.groups.map((group) =>
      [group.name, group.behind === null ? 'not counted' : number(group.behind),
        spoken(group.waiting_seconds), number(group.pending), number(group.consumers)])));
  }
  return card;
}

function show(report) {
  heard = Date.now();
  document.getElementById('lost').hidden = true;
  const service = report.service;
  document.getElementById('service').textContent =
    `${service.version}, runs as ${service.instance}, Redis at ${report.redis.address}`;
  const troubles = report.troubles.map((found) => trouble(found, null));
  for (const of of report.chains) troubles.push(...of.troubles.map((found) => trouble(found, of.name)));
  if (!troubles.length) troubles.push(node('p', { class: 'well' }, 'All is well.'));
  document.getElementById('troubles').replaceChildren(...troubles);
  document.getElementById('chains').replaceChildren(...report.chains.map(chain));
  document.title = report.ok ? 'EthHook' : 'EthHook: something is wrong';
}

async function poll() {
  try {
    const answer = await fetch('/status.json');
    if (answer.ok) show(await answer.json());
  } catch { /* the line below says so once it lasts */ }
  setTimeout(poll, POLL_MS);
}

// The browser connects again by itself, unless it was refused: there are too many pages open.
const events = new EventSource('/events');
events.onmessage = (event) => show(JSON.parse(event.data));
events.onerror = () => { if (events.readyState === EventSource.CLOSED) poll(); };

setInterval(() => {
  const silent = Date.now() - heard;
  if (silent < LOST_MS) return;
  const lost = document.getElementById('lost');
  lost.textContent = `No update from the service for ${spoken(Math.floor(silent / 1000))}: what is `
    + 'shown is that old. Is it running, and can this browser reach it? Its log says more.';
  lost.hidden = false;
}, 1000);
