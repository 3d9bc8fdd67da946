// What the user does: open an image, select and change points, use the controls and the keys.

const element = (id) => document.getElementById(id);

function say(words) {
  element("status").textContent = words;
}

// --- Images

function openImage(image) {
  if (view.drag) endPointer(false);
  view.image = image;
  view.picture = null;
  fitImage();
  imageTable.mark(image);
  landmarkTable.show(landmarkNumbers);
  tip.hidden = true;
  element("rename").dataset.of = ""; // the choice was made for another image
  if (view.placing) nextToPlace(null);
  else chooseLandmark(view.chosen);
  updateFigures();
  loadPicture(image).then((picture) => {
    if (view.image !== image) return;
    view.picture = picture;
    redraw("film");
    requestAnimationFrame(() => performance.mark("ready"));
    const next = imageTable.neighbour(1);
    if (next) loadPicture(next).catch(() => {});
  }).catch(() => {
    if (view.image === image) say(`${image.name} cannot be shown; was the file moved?`);
  });
}

function filterImages() {
  const words = element("filter").value.trim().toLocaleLowerCase();
  const chosen = images.filter((image) => `${image.name} ${image.split ?? ""}`.toLocaleLowerCase().includes(words));
  imageTable.show(chosen);
  element("image-count").textContent = words ? `(${chosen.length} of ${images.length})` : `(${images.length})`;
}

function markReviewed(image, reviewed) {
  const words = reviewed ? "reviewed" : "not reviewed";
  commit(image, [{ landmark: null, before: image.reviewed, after: reviewed }], words);
  say(`${image.name}: ${words}`);
  redraw("figures");
}

// Refresh everything that depends on the points.
function updateFigures() {
  figures.delete(view.image);
  imageTable.update();
  landmarkTable.update();
  if (!element("all").hidden) {
    countTotals();
    summaryTable.update();
  }
  const { image } = view;
  const own = figuresOf(image);
  const parts = [image.name, image.split, `${image.width} × ${image.height} px`];
  if (own.error !== null) parts.push(`mean error ${own.error.toFixed(2)} ${data.unit}`);
  else if (own.score !== null) parts.push(`mean score ${own.score.toFixed(3)}`);
  if (image.verdict) parts.push(image.verdict.filter(Boolean).join(": "));
  element("caption").title = parts.filter(Boolean).join(" · ");
  element("caption").textContent = parts.filter(Boolean).join(" · ");
  const changed = images.reduce((sum, each) => sum + figuresOf(each).changed, 0);
  element("changes").textContent = changed ? `(${changed} changed)` : "";
  const reviewed = images.filter((each) => each.reviewed).length;
  element("reviewed-count").textContent = reviewed ? `${reviewed} of ${images.length} done` : "";
  element("unkept").hidden = isKept || !isUnsaved();
  element("undo").disabled = !done.length;
  element("redo").disabled = !undone.length;
  document.title = `${isUnsaved() ? "* " : ""}${data.title}`;
  describeChosen();
}

// --- Landmarks

function chooseLandmark(landmark) {
  view.chosen = landmark;
  landmarkTable.mark(landmark);
  summaryTable.mark(landmark);
  describeChosen();
  redraw("marks");
}

function describeChosen() {
  const { image, chosen } = view;
  element("placing").hidden = !view.placing;
  element("placing-name").textContent = describePlacing();
  element("skip").disabled = toBePlaced() === null;
  element("chosen-tools").hidden = chosen === null;
  if (chosen === null) {
    element("chosen-name").textContent = "No landmark selected";
    element("chosen-place").textContent = "Click a point or a row, or press n.";
    return;
  }
  const { abbreviation, name } = landmarks[chosen];
  const point = image.points[chosen];
  const error = errorOf(image, chosen);
  element("chosen-name").textContent = name === abbreviation ? name : `${abbreviation}  ${name}`;
  element("chosen-name").title = element("chosen-name").textContent;
  const place = point ? `x ${point[0].toFixed(2)}  y ${point[1].toFixed(2)} px` : "hidden: missing in the saved file";
  const words = [place];
  if (error !== null) words.push(`error ${error.toFixed(2)} ${data.unit}`);
  element("chosen-place").textContent = words.join(" · ");
  element("hide").checked = point === null;
  if (element("rename").dataset.of !== String(chosen)) {
    element("rename").dataset.of = element("rename").value = String(chosen);
    element("swap").disabled = true;
  }
}

// Move the view if a point of this image is outside it.
function showPoint(landmark) {
  showPlace(view.image.points[landmark]);
}

function showPlace(point) {
  if (!point) return;
  const [x, y] = toScreen(point);
  if (x < 0 || y < 0 || x > stage.clientWidth || y > stage.clientHeight) {
    panBy(stage.clientWidth / 2 - x, stage.clientHeight / 2 - y);
  }
}

function changePoint(landmark, after, words, continues = false) {
  const before = view.image.points[landmark];
  if (samePoint(before, after)) return redraw("marks", "figures");
  commit(view.image, [{ landmark, before, after }], `${landmarks[landmark].abbreviation} ${words}`, continues);
  const error = errorOf(view.image, landmark);
  const fact = error === null ? "" : `, error ${error.toFixed(2)} ${data.unit}`;
  say(`${landmarks[landmark].abbreviation} ${words}${fact}`);
  redraw("marks", "figures");
}

function hideLandmark(landmark, hidden) {
  chooseLandmark(landmark);
  if (hidden) return changePoint(landmark, null, "hidden");
  // at its last place, otherwise in the middle of the view
  const before = lastPlace(view.image, landmark);
  const middle = insideImage(view.image, toImage([stage.clientWidth / 2, stage.clientHeight / 2]));
  changePoint(landmark, before ?? middle, before ? "shown again" : "placed in the middle: drag it to its place");
}

function renameLandmark(landmark, other) {
  if (landmark === other) return;
  const { points, occluded } = view.image;
  const changes = [[landmark, other], [other, landmark]].map(([to, from]) => ({
    landmark: to, before: points[to], after: points[from], occluded: [occluded[to], occluded[from]],
  }));
  const words = `${landmarks[landmark].abbreviation} and ${landmarks[other].abbreviation} swapped`;
  commit(view.image, changes, words);
  say(words);
  chooseLandmark(other);
  redraw("marks", "figures");
}

// --- Placing: a click sets the landmark that is shown large; then comes the next missing one of data.json

function toBePlaced() {
  return view.placing && view.chosen !== null && view.image.points[view.chosen] === null ? view.chosen : null;
}

function describePlacing() {
  const left = landmarkNumbers.filter((landmark) => !view.image.points[landmark]).length;
  if (toBePlaced() === null) return left ? `${left} missing; n: the next one` : "All are placed; j: next image";
  const { abbreviation, name } = landmarks[view.chosen];
  return name === abbreviation ? name : `${abbreviation}  ${name}`;
}

function setPlacing(placing) {
  view.placing = placing;
  element("place").setAttribute("aria-pressed", String(placing));
  marks.classList.toggle("placing", placing);
  view.image.skipped.clear();
  if (placing) nextToPlace(null);
  else describeChosen();
}

function nextToPlace(after) {
  const start = after === null ? 0 : after + 1;
  const next = [...landmarkNumbers.slice(start), ...landmarkNumbers.slice(0, start)].find(
    (landmark) => !view.image.points[landmark] && !view.image.skipped.has(landmark),
  );
  chooseLandmark(next ?? null);
  if (next !== undefined && !view.fitted) showPlace(usualPlace(next));
}

// Where a landmark lies in the middle of the other images; null if none has it.
function usualPlace(landmark) {
  const others = images.filter((image) => image !== view.image && image.points[landmark]);
  const middle = (values) => values.sort((a, b) => a - b)[values.length >> 1];
  if (!others.length) return null;
  return [
    view.image.width * middle(others.map((image) => image.points[landmark][0] / image.width)),
    view.image.height * middle(others.map((image) => image.points[landmark][1] / image.height)),
  ];
}

function placeLandmark(point) {
  const landmark = toBePlaced();
  if (landmark === null) return;
  if (isOutside(view.image, point)) return say("This is outside the image");
  view.image.skipped.delete(landmark);
  changePoint(landmark, insideImage(view.image, point), "placed");
  nextToPlace(landmark);
}

function skipLandmark() {
  const landmark = toBePlaced();
  if (landmark === null) return;
  view.image.skipped.add(landmark);
  say(`${landmarks[landmark].abbreviation} stays missing`);
  nextToPlace(landmark);
}

// --- Changes

function nudge(x, y, event) {
  const point = view.image.points[view.chosen];
  const step = event.shiftKey ? 10 : 1;
  if (view.chosen === null) return panBy(-40 * x, -40 * y);
  if (!point) return say(`${landmarks[view.chosen].abbreviation} is hidden; press h to show it`);
  changePoint(view.chosen, insideImage(view.image, [point[0] + step * x, point[1] + step * y]), "moved", event.repeat);
}

function travel(edit, verb) {
  if (!edit) return say(`Nothing to ${verb}`);
  figures.delete(edit.image);
  if (edit.image !== view.image) openImage(edit.image);
  chooseLandmark(edit.changes[0].landmark);
  say(`${verb}: ${edit.words}`);
  redraw("marks", "figures");
}

const undo = () => travel(undoEdit(), "undo");
const redo = () => travel(redoEdit(), "redo");

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([savedText()], { type: "application/json" }));
  link.download = "data.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saved = done.at(-1) ?? null;
  keepWork();
  const outside = countOutside();
  const words = data.predicted ? "saved at its edge" : "main.py will refuse them";
  say(`data.json is in your downloads${outside ? `; ${outside} points outside their image: ${words}` : ""}`);
  redraw("figures");
}

// --- Controls

function chooseTab(name) {
  for (const each of ["one", "all"]) {
    element(each).hidden = each !== name;
    element(`tab-${each}`).setAttribute("aria-selected", String(each === name));
    element(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
  if (name === "all") {
    countTotals();
    summaryTable.show(landmarkNumbers);
  }
}

function setIntensities() {
  const words = [`brightness(${element("brightness").value}%)`, `contrast(${element("contrast").value}%)`];
  if (element("invert").checked) words.unshift("invert(1)");
  const asRead = words.join() === "brightness(100%),contrast(100%)";
  film.style.filter = asRead ? "" : words.join(" ");
}

function toggle(id) {
  element(id).click();
}

function takeStep(table, step, choose) {
  const item = table.neighbour(step);
  if (item !== undefined) choose(item);
}

const nextImage = (step) => takeStep(imageTable, step, openImage);
const nextLandmark = (step) => takeStep(element("all").hidden ? landmarkTable : summaryTable, step, (landmark) => {
  chooseLandmark(landmark);
  showPoint(landmark);
  say(describeDot({ landmark, own: true }).replace("\n", ": "));
});
const keys = {
  j: () => nextImage(1), k: () => nextImage(-1), PageDown: () => nextImage(1), PageUp: () => nextImage(-1),
  n: () => nextLandmark(1), p: () => nextLandmark(-1),
  ArrowLeft: (event) => nudge(-1, 0, event), ArrowRight: (event) => nudge(1, 0, event),
  ArrowUp: (event) => nudge(0, -1, event), ArrowDown: (event) => nudge(0, 1, event),
  h: () => view.chosen !== null && hideLandmark(view.chosen, view.image.points[view.chosen] !== null),
  r: () => view.chosen !== null && element("rename").focus(),
  m: () => setPlacing(!view.placing), x: skipLandmark, v: () => markReviewed(view.image, !view.image.reviewed),
  "+": () => zoomBy(1.25, middleOfView()), "=": () => zoomBy(1.25, middleOfView()),
  "-": () => zoomBy(0.8, middleOfView()),
  0: fitImage, 1: () => toggle("show-points"), 2: () => hasTruth && toggle("show-truth"),
  3: () => hasTruth && toggle("show-lines"), 4: () => toggle("show-names"),
  5: () => hasRadius && toggle("show-radius"), i: () => toggle("invert"),
  s: save, "/": () => element("filter").focus(), "?": () => element("help").showModal(),
  Escape: () => chooseLandmark(null),
};

function pressKey(event) {
  if (element("help").open) return;
  if (view.drag) { // the point is between two edits: only cancelling the drag is possible
    event.preventDefault();
    if (event.key === "Escape") endPointer(false);
    return;
  }
  const target = event.target;
  const control = event.ctrlKey || event.metaKey;
  const typing = target.matches("input:not([type=checkbox]), select");
  const letter = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let action = null;
  if (control && letter === "s") action = save;
  else if (control && letter === "z" && target.id !== "filter") action = event.shiftKey ? redo : undo;
  else if (control && letter === "y" && target.id !== "filter") action = redo;
  else if (typing && event.key === "Escape") action = () => marks.focus();
  else if (!typing && !control && !event.altKey) action = keys[letter];
  // on a tab, the arrow keys switch tabs
  if (target.getAttribute("role") === "tab" && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    action = () => {
      chooseTab(element("all").hidden ? "all" : "one");
      document.querySelector('[role="tab"][aria-selected="true"]').focus();
    };
  }
  if (!action) return;
  event.preventDefault();
  action(event);
}

function start() {
  document.title = element("title").textContent = element("title").title = data.title;
  element("own-word").textContent = data.predicted ? "Predicted" : "True";
  element("own-dot").classList.add(data.predicted ? "predicted" : "true");
  for (const each of document.querySelectorAll(".with-truth")) each.hidden = !hasTruth;
  for (const each of document.querySelectorAll(".with-radius")) each.hidden = !hasRadius;
  element("help-words").textContent = (data.predicted ? "Red points are predicted" : "Blue points are the truth")
    + ` and can be dragged${hasTruth ? "; blue ones are the truth" : ""}. Hover over a point for its name. `
    + "Saving downloads data.json, which python main.py reads; nothing leaves this computer.";
  const byName = (a, b) => landmarks[a].abbreviation.localeCompare(landmarks[b].abbreviation);
  const order = landmarkNumbers.slice().sort(byName);
  element("rename").replaceChildren(...order.map((landmark) => {
    const { abbreviation, name } = landmarks[landmark];
    return new Option(name === abbreviation ? name : `${abbreviation}  ${name}`, String(landmark));
  }));
  // the list alone must not swap: with the keyboard it changes at every arrow key on the way to a name
  element("rename").addEventListener("change", () => {
    element("swap").disabled = element("rename").value === String(view.chosen);
  });
  element("swap").addEventListener("click", () => renameLandmark(view.chosen, Number(element("rename").value)));
  element("hide").addEventListener("change", () => hideLandmark(view.chosen, element("hide").checked));
  element("place").addEventListener("click", () => setPlacing(!view.placing));
  element("skip").addEventListener("click", skipLandmark);
  element("discard").addEventListener("click", () => {
    done.length = 0;
    saved = null;
    keepWork();
    location.reload();
  });
  element("undo").addEventListener("click", undo);
  element("redo").addEventListener("click", redo);
  element("save").addEventListener("click", save);
  element("help-button").addEventListener("click", keys["?"]);
  element("zoom-in").addEventListener("click", keys["+"]);
  element("zoom-out").addEventListener("click", keys["-"]);
  element("fit").addEventListener("click", fitImage);
  element("filter").addEventListener("input", filterImages);
  for (const name of ["one", "all"]) element(`tab-${name}`).addEventListener("click", () => chooseTab(name));
  for (const name of ["points", "truth", "lines", "names", "radius"]) {
    element(`show-${name}`).addEventListener("change", () => redraw("marks"));
  }
  for (const name of ["brightness", "contrast", "invert"]) element(name).addEventListener("input", setIntensities);
  element("plain").addEventListener("click", () => {
    element("brightness").value = element("contrast").value = 100;
    element("invert").checked = false;
    setIntensities();
  });
  document.addEventListener("keydown", pressKey);
  window.addEventListener("beforeunload", (event) => {
    if (isUnsaved()) event.preventDefault();
  });
  const restored = restoreWork();
  element("discard").hidden = !restored;
  filterImages();
  openImage(imageTable.order[0]);
  say(restored ? `${restored} edits of your last visit are here again` : "Press ? for the keys");
}

start();
