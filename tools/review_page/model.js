"use strict";
// The state of the page: images and points, all edits, the figures, and the saved file.
// A point is [x, y] in px of the image file; (0, 0) is the centre of its first pixel; null: missing.

const data = JSON.parse(document.getElementById("data").textContent);
const landmarks = data.landmarks;
const images = data.images;
for (const [number, image] of images.entries()) {
  image.number = number;
  image.source = image.points; // as in the file
  image.points = image.points.slice();
  image.occluded = landmarks.map(() => null); // JSON for each point, null if the file does not state it
  for (const { landmark, occluded } of image.entries) image.occluded[landmark] = occluded;
  image.occludedSource = image.occluded.slice();
  image.reviewedSource = image.reviewed;
  image.skipped = new Set(); // landmarks that are not to be placed
}
const hasTruth = images.some((image) => image.truth);
const hasRadius = images.some((image) => image.radius);
const isJudged = images.some((image) => image.verdict);
const verdicts = ["reject", "check", "good"]; // the worst first
const hasScore = images.some((image) => image.score && image.score.some((value) => value !== null));

function samePoint(one, other) {
  return one === other || (one !== null && other !== null && one[0] === other[0] && one[1] === other[1]);
}

function insideImage(image, [x, y]) {
  const hundredths = (value, size) => Math.round(Math.min(Math.max(value, -0.5), size - 0.5) * 100) / 100;
  return [hundredths(x, image.width), hundredths(y, image.height)];
}

// --- Edits: those done, and those undone, which can be redone. An edit holds its image and its points before and
// after; for swapped points also `occluded`, because that belongs to a place. Without a landmark it is about whether
// the image is reviewed.

const done = [];
const undone = [];
let saved = null; // the last edit in the saved file

function commit(image, changes, words, continues = false) {
  const last = done.at(-1);
  if (continues && last && last.image === image && last.changes[0].landmark === changes[0].landmark && last !== saved) {
    last.changes[0].after = changes[0].after; // a key held down makes one edit
  } else {
    done.push({ image, changes, words });
  }
  undone.length = 0;
  for (const change of changes) apply(image, change, change.after, 1);
  keepWork();
}

function apply(image, { landmark, occluded }, point, which) {
  if (landmark === null) image.reviewed = point;
  else image.points[landmark] = point;
  if (occluded) image.occluded[landmark] = occluded[which];
}

function undoEdit() {
  const edit = done.pop();
  if (edit) {
    undone.push(edit);
    for (const change of edit.changes) apply(edit.image, change, change.before, 0);
    keepWork();
  }
  return edit;
}

function redoEdit() {
  const edit = undone.pop();
  if (edit) {
    done.push(edit);
    for (const change of edit.changes) apply(edit.image, change, change.after, 1);
    keepWork();
  }
  return edit;
}

// --- The edits are kept in this browser under a name that changes with the source, so that a reload loses nothing. They
// stay after saving: the page still shows its source, and the edits make it what was saved.

const storageName = `review ${data.fingerprint}`;
let isKept = true; // false: the browser keeps nothing

function keepWork() {
  const edits = done.map((edit) => ({ ...edit, image: edit.image.number }));
  try {
    if (edits.length) localStorage.setItem(storageName, JSON.stringify({ edits, saved: done.indexOf(saved) }));
    else localStorage.removeItem(storageName);
    isKept = true;
  } catch { // forbidden or full
    isKept = false;
  }
}

function restoreWork() {
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(storageName));
  } catch {
    isKept = false;
  }
  for (const edit of kept ? kept.edits : []) {
    done.push({ ...edit, image: images[edit.image] });
    for (const change of edit.changes) apply(images[edit.image], change, change.after, 1);
  }
  saved = kept ? done[kept.saved] ?? null : null;
  return done.length;
}

function isUnsaved() {
  return (done.at(-1) ?? null) !== saved;
}

function isChanged(image, landmark) {
  const same = image.occluded[landmark] === image.occludedSource[landmark];
  return !same || !samePoint(image.points[landmark], image.source[landmark]);
}

function countChanges(image) {
  return landmarks.reduce((count, _, landmark) => count + isChanged(image, landmark), 0);
}

// The last place of a missing landmark: before it was hidden, or in the file if it is a point that is not visible.
function lastPlace(image, landmark) {
  const changes = done.filter((edit) => edit.image === image).flatMap((edit) => edit.changes);
  const edited = changes.findLast((change) => change.landmark === landmark && change.before);
  if (edited) return edited.before;
  const { place } = image.entries.find((entry) => entry.landmark === landmark);
  return place && !isOutside(image, place) ? place : null;
}

// --- Figures: errors in mm, or in px if the spacing is unknown; null if there is none

function errorOf(image, landmark) {
  const point = image.points[landmark];
  const truth = image.truth && image.truth[landmark];
  if (!point || !truth || image.spacing === null) return null;
  return Math.hypot(point[0] - truth[0], point[1] - truth[1]) * image.spacing;
}

function scoreOf(image, landmark) {
  return image.points[landmark] && image.score ? image.score[landmark] : null;
}

function known(values) {
  return values.filter((value) => value !== null);
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

function largest(values) {
  return values.length ? Math.max(...values) : null;
}

function smallest(values) {
  return values.length ? Math.min(...values) : null;
}

function imageFigures(image) {
  const errors = known(landmarks.map((_, landmark) => errorOf(image, landmark)));
  const scores = known(landmarks.map((_, landmark) => scoreOf(image, landmark)));
  return {
    error: mean(errors), worst: largest(errors), score: mean(scores), lowest: smallest(scores),
    missing: image.points.filter((point) => point === null).length, changed: countChanges(image),
  };
}

function landmarkFigures(landmark) {
  const pairs = images.map((image) => [image, errorOf(image, landmark)]).filter(([, error]) => error !== null);
  const rated = images.map((image) => [image, scoreOf(image, landmark)]).filter(([, score]) => score !== null);
  const errors = pairs.map(([, error]) => error);
  const scores = rated.map(([, score]) => score);
  const most = largest(errors);
  const lowest = smallest(scores);
  const place = hasTruth ? pairs.find(([, error]) => error === most) : rated.find(([, score]) => score === lowest);
  const within = errors.filter((error) => error <= data.threshold).length;
  return {
    count: hasTruth ? errors.length : images.filter((image) => image.points[landmark]).length,
    missing: images.filter((image) => !image.points[landmark]).length,
    error: mean(errors), rate: errors.length ? (100 * within) / errors.length : null, most,
    score: mean(scores), lowest, where: place ? place[0] : null,
  };
}

// --- The saved file: what was not changed is written as it was read

function isOutside(image, point) {
  return point !== null && (Math.min(...point) < -0.5 || point[0] > image.width - 0.5 || point[1] > image.height - 0.5);
}

function countOutside() {
  return images.reduce((sum, image) => sum + image.points.filter((point) => isOutside(image, point)).length, 0);
}

function savedPoint(image, { landmark, whole, keys, visible }) {
  const own = image.points[landmark];
  const off = data.predicted && isOutside(image, own); // main.py would refuse such a point as truth
  if (!off && !isChanged(image, landmark)) return whole;
  const [X, Y] = (off ? insideImage(image, own) : own) ?? [null, null];
  const parts = [keys, `"X": ${X}`, `"Y": ${Y}`];
  if (visible) parts.push(`"visible": ${X !== null}`);
  if (image.occluded[landmark] !== null) parts.push(`"occluded": ${image.occluded[landmark]}`);
  return `{${parts.join(", ")}}`;
}

function savedKeys(image) {
  if (image.reviewed === image.reviewedSource) return image.keys;
  return [image.otherKeys, image.reviewed ? '"reviewed": true' : ""].filter(Boolean).join(", ");
}

function savedText() {
  const records = new Map(data.others);
  for (const image of images) {
    const points = image.entries.map((entry) => savedPoint(image, entry));
    records.set(image.place, `{${savedKeys(image)}, "points": [\n  ${points.join(",\n  ")}\n ]}`);
  }
  const places = [...records.keys()].sort((one, other) => one - other);
  return `[\n ${places.map((place) => records.get(place)).join(",\n ")}\n]\n`;
}
