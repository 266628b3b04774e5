"use strict";
// The page of a reader study. It asks no server for anything: the cases are in the page,
// and the answers stay in the browser's storage until the reader saves them.
const study = JSON.parse(document.querySelector("#study").textContent);
const CONDITIONS = ["unaided", "aided"];
const CONFIDENCE = ["a guess", "unsure", "fairly sure", "sure", "certain"];
const COLUMNS = ["reader", "reader_group", "case", "condition", "order", "answer", "confidence", "seconds", "answered"];
const DAY = 86_400_000;
const $ = (id) => document.getElementById(id);
let reader = null; // The code and group of the reader, and the answers in order.
let shown = null; // The case on the screen.

function fail(text) {
  $("problem").textContent = text;
  $("problem").hidden = false;
}

function show(...ids) {
  for (const id of ["start", "reading", "pause", "save-section"]) $(id).hidden = !ids.includes(id);
}

/** Return a function of random numbers in [0, 1) that is the same for the same text. */
function random(text) {
  let state = 0x811c9dc5; // FNV-1a spreads similar texts; mulberry32 then draws.
  for (const byte of new TextEncoder().encode(text)) state = Math.imul(state ^ byte, 0x01000193);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Return the cases in the order of a reader and a condition (Fisher and Yates). */
function shuffled(name, condition) {
  const draw = random(`${study.seed}/${name}/${condition}`);
  const cases = [...study.cases];
  for (let i = cases.length - 1; i > 0; i--) {
    const j = Math.floor(draw() * (i + 1));
    [cases[i], cases[j]] = [cases[j], cases[i]];
  }
  return cases;
}

const key = (name) => `dermedge-reader-study/${study.id}/${name}`;

/** Return what the browser's storage holds of a reader. */
function load(name) {
  const stored = localStorage.getItem(key(name));
  return stored === null ? null : JSON.parse(stored);
}

function store() {
  localStorage.setItem(key(reader.name), JSON.stringify(reader));
}

/** Return the time from which the second list is open. */
function opens() {
  const last = reader.answers[study.cases.length - 1];
  return Date.parse(last.answered) + study.washoutDays * DAY;
}

/** Show the next case, the pause, or the end: the number of answers decides. */
function advance() {
  const done = reader.answers.length;
  const total = study.cases.length;
  if (done === 2 * total) return pause("Thank you, all cases are answered.", "Save the answers, and send the file to the study.", false);
  if (done === total && !reader.second) {
    const wait = opens() - Date.now();
    const when = new Date(opens()).toLocaleString();
    return pause(
      "The first list is finished.",
      wait > 0
        ? `The second list opens on ${when}. Save the answers now, and open this page in this browser again then.`
        : "In the second list you see each case again, with the model's prediction. Save the answers of the first list now.",
      wait <= 0,
    );
  }
  showCase(done < total ? 0 : 1, done % total);
}

function pause(title, text, open) {
  shown = null;
  $("pause-title").textContent = title;
  $("pause-text").textContent = text;
  $("go-on").hidden = !open;
  show("pause", "save-section");
  $("pause-title").focus();
}

function showCase(condition, index) {
  const each = shuffled(reader.name, CONDITIONS[condition])[index];
  const total = study.cases.length;
  shown = { each, condition, since: performance.now(), seconds: 0 };
  if (document.hidden) shown.since = null;
  $("image").src = each.image;
  $("list").textContent = condition === 0 ? "First list, without the model" : "Second list, with the model";
  $("count").textContent = `Case ${index + 1} of ${total}`;
  $("bar").max = total;
  $("bar").value = index;
  $("prediction").hidden = condition === 0;
  // Without the model, its prediction is nowhere in the page's elements.
  $("prediction-rows").replaceChildren(...(condition === 0 ? [] : each.prediction.flatMap(row)));
  $("answer-form").reset();
  show("reading");
  $("announce").textContent = `${$("list").textContent}. ${$("count").textContent}.`;
  document.querySelector("#answers input").focus();
}

function row([name, value]) {
  const cells = [document.createElement("dt"), document.createElement("dd")];
  cells[0].textContent = name;
  cells[1].textContent = value;
  return cells;
}

/** Count the seconds only while the page is visible. */
function tick() {
  if (shown === null) return;
  if (shown.since !== null) shown.seconds += (performance.now() - shown.since) / 1000;
  shown.since = document.hidden ? null : performance.now();
}

function answer(event) {
  event.preventDefault();
  const form = new FormData($("answer-form"));
  tick();
  const latest = load(reader.name);
  // Another tab may have gone on with the same reader.
  if (latest === null || latest.answers.length !== reader.answers.length) {
    reader = latest ?? reader;
    fail("This list was answered in another window. This page goes on where that window is.");
    return advance();
  }
  reader.answers.push({
    case: shown.each.id,
    condition: CONDITIONS[shown.condition],
    order: reader.answers.length + 1,
    answer: form.get("answer"),
    confidence: Number(form.get("confidence")),
    seconds: Math.round(10 * shown.seconds) / 10,
    answered: new Date().toISOString(),
  });
  try {
    store();
  } catch {
    reader.answers.pop();
    return fail("The browser cannot store the answer. Free space in its storage, then press Next case again.");
  }
  $("problem").hidden = true;
  advance();
}

/** Return a row of the table; quotes are doubled, as in RFC 4180. */
function line(values) {
  return values.map((value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value)).join(",");
}

function save() {
  const rows = reader.answers.map((each) => {
    const all = { reader: reader.name, reader_group: reader.group, ...each };
    return line(COLUMNS.map((column) => all[column]));
  });
  const blob = new Blob([[COLUMNS.join(","), ...rows, ""].join("\n")], { type: "text/csv" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `answers-${reader.name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  $("announce").textContent = `${rows.length} answers were saved.`;
}

function start(event) {
  event.preventDefault();
  const name = $("reader").value.trim();
  const fresh = { name, group: $("group").value.trim(), second: false, answers: [] };
  try {
    reader = load(name) ?? fresh;
    store();
  } catch {
    return fail("This browser does not store data for this page. Allow it, or open the page in another browser.");
  }
  advance();
}

/** Add one radio button, with the key that chooses it. */
function option(parent, name, value, text, letter) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const key = document.createElement("kbd");
  const words = document.createElement("span");
  label.className = "option";
  Object.assign(input, { type: "radio", name, value, required: true });
  key.textContent = letter;
  key.setAttribute("aria-hidden", "true");
  words.textContent = text;
  label.append(input, words, key);
  input.dataset.key = letter;
  parent.append(label);
}

function press(event) {
  if (shown === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const input = document.querySelector(`#answer-form input[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (input !== null) {
    input.checked = true;
    input.focus();
    event.preventDefault();
  } else if (event.key === "Enter" && event.target.type === "radio") {
    event.preventDefault();
    $("answer-form").requestSubmit();
  }
}

$("title").textContent = document.title = study.title;
$("question").textContent = study.question;
$("intro").textContent =
  `You see ${study.cases.length} photographs twice: first without a model's prediction, then with it` +
  `${study.washoutDays > 0 ? `, at least ${study.washoutDays} days later` : ""}. Answer each one yourself, in this browser.`;
study.choices.forEach((choice, i) => option($("answers"), "answer", choice.id, choice.name, "abcdefghijklmnopqrstuvwxyz"[i] ?? ""));
CONFIDENCE.forEach((text, i) => option($("confidences"), "confidence", i + 1, text, String(i + 1)));
$("start-form").addEventListener("submit", start);
$("answer-form").addEventListener("submit", answer);
$("save").addEventListener("click", save);
$("go-on").addEventListener("click", () => {
  reader.second = true;
  store();
  advance();
});
document.addEventListener("keydown", press);
document.addEventListener("visibilitychange", tick);
show("start");
$("reader").focus();
