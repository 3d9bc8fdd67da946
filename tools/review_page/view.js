// The radiograph: two canvases, the film below and the marks above it; zoom, pan, hovering and dragging.
// A point is drawn at (x + 0.5) * scale, since pixel centres are at integers and the edge of the film is at -0.5.

const stage = document.getElementById("stage");
const film = document.getElementById("film");
const marks = document.getElementById("marks");
const tip = document.getElementById("tip");
const RADIUS = 4; // screen px of a dot
const REACH = 10; // screen px within which a dot can be hovered or grabbed
const view = {
  scale: 1, x: 0, y: 0, image: null, picture: null, chosen: null, drag: null, fitted: true, placing: false,
};
const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
const colours = { red: colourOf("red"), blue: colourOf("blue"), yellow: colourOf("yellow") };
const ownColour = data.predicted ? colours.red : colours.blue;

function toScreen([x, y]) {
  return [(x + 0.5) * view.scale + view.x, (y + 0.5) * view.scale + view.y];
}

function toImage([x, y]) {
  return [(x - view.x) / view.scale - 0.5, (y - view.y) / view.scale - 0.5];
}

function isShown(name) {
  return document.getElementById(`show-${name}`).checked;
}

// --- Pictures, decoded when they are shown; a few are kept

const pictures = new Map();

function loadPicture(image) {
  if (!pictures.has(image)) {
    const picture = new Image();
    const text = document.getElementById(`image-${image.number}`);
    picture.src = text ? `data:image/jpeg;base64,${text.textContent}` : image.address;
    const ready = picture.decode().then(() => picture);
    ready.catch(() => pictures.delete(image));
    pictures.set(image, ready);
    if (pictures.size > 8) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(image);
}

// --- Drawing, at most once per frame

const stale = { film: false, marks: false, figures: false };

function redraw(...parts) {
  if (!stale.film && !stale.marks && !stale.figures) requestAnimationFrame(drawFrame);
  for (const part of parts) stale[part] = true;
}

// Fit the canvases to the stage and the screen: the window can move to a finer screen without being resized.
function sizeCanvases() {
  const width = Math.round(stage.clientWidth * window.devicePixelRatio);
  const height = Math.round(stage.clientHeight * window.devicePixelRatio);
  for (const canvas of [film, marks]) {
    if (canvas.width === width && canvas.height === height) continue;
    canvas.width = width;
    canvas.height = height;
    stale.film = true;
  }
}

let resolution = null; // reports when the resolution of the screen changes

function watchResolution() {
  resolution = window.matchMedia(`(resolution: ${window.devicePixelRatio}dppx)`);
  resolution.addEventListener("change", () => {
    redraw("film");
    watchResolution();
  }, { once: true });
}

function drawFrame() {
  sizeCanvases();
  if (stale.film) drawFilm();
  if (stale.film || stale.marks) drawMarks();
  if (stale.figures) updateFigures();
  stale.film = stale.marks = stale.figures = false;
}

function drawFilm() {
  const context = film.getContext("2d");
  const ratio = window.devicePixelRatio;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, film.width, film.height);
  context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
  const { image, picture } = view;
  if (picture) {
    const enlarged = (ratio * view.scale * image.width) / picture.naturalWidth;
    context.imageSmoothingEnabled = enlarged < 6; // beyond that, show the single pixels
    context.drawImage(picture, 0, 0, image.width, image.height);
  } else if (image) {
    context.fillStyle = "#2b2b2b";
    context.fillRect(0, 0, image.width, image.height);
  }
  document.getElementById("zoom").value = `${Math.round(100 * view.scale)} %`;
}

function drawMarks() {
  const context = marks.getContext("2d");
  const ratio = window.devicePixelRatio;
  const image = view.image;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, marks.width, marks.height);
  if (!image) return;
  const own = isShown("points") ? image.points : [];
  const truth = image.truth && isShown("truth") ? image.truth : [];
  if (isShown("lines")) {
    context.lineWidth = 2;
    context.strokeStyle = colours.yellow;
    context.beginPath();
    own.forEach((point, landmark) => {
      if (point && truth[landmark]) {
        context.moveTo(...toScreen(point));
        context.lineTo(...toScreen(truth[landmark]));
      }
    });
    context.stroke();
  }
  if (isShown("radius") && image.radius) {
    context.lineWidth = 1;
    context.strokeStyle = ownColour;
    image.source.forEach((point, landmark) => { // where it was predicted
      if (!point || !image.radius[landmark] || !own[landmark]) return;
      context.beginPath();
      context.arc(...toScreen(point), view.scale * image.radius[landmark], 0, 2 * Math.PI);
      context.stroke();
    });
  }
  drawDots(context, truth, colours.blue);
  drawDots(context, own, ownColour);
  if (isShown("names")) drawNames(context, own);
  const chosen = own[view.chosen];
  if (chosen) {
    for (const [width, colour] of [[4, "#000a"], [2, "#ffffff"]]) {
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.beginPath();
      context.arc(...toScreen(chosen), RADIUS + 5, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

function drawDots(context, points, colour) {
  context.fillStyle = colour;
  context.strokeStyle = "#000c";
  context.lineWidth = 1;
  for (const point of points) {
    if (point) {
      context.beginPath();
      context.arc(...toScreen(point), RADIUS, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
    }
  }
}

function drawNames(context, points) {
  context.font = "12px system-ui, sans-serif";
  context.lineWidth = 3;
  context.strokeStyle = "#000c";
  context.fillStyle = "#ffffff";
  context.lineJoin = "round";
  const taken = []; // leave out a name that would cover another; the selected landmark comes first
  const order = landmarks.map((_, landmark) => landmark).sort((a, b) => (b === view.chosen) - (a === view.chosen));
  for (const landmark of order) {
    if (!points[landmark]) continue;
    const name = landmarks[landmark].abbreviation;
    const [x, y] = toScreen(points[landmark]);
    const [left, base] = [x + RADIUS + 3, y - RADIUS];
    const right = left + context.measureText(name).width;
    if (taken.some((box) => left < box.right && right > box.left && Math.abs(base - box.base) < 12)) continue;
    taken.push({ left, right, base });
    context.strokeText(name, left, base);
    context.fillText(name, left, base);
  }
}

// --- Zoom and pan

function fitImage() {
  const { image } = view;
  if (!image) return;
  view.scale = 0.98 * Math.min(stage.clientWidth / image.width, stage.clientHeight / image.height);
  view.x = (stage.clientWidth - image.width * view.scale) / 2;
  view.y = (stage.clientHeight - image.height * view.scale) / 2;
  view.fitted = true;
  redraw("film");
}

function zoomBy(factor, [x, y]) {
  const { image } = view;
  if (!image) return;
  const fit = Math.min(stage.clientWidth / image.width, stage.clientHeight / image.height);
  const scale = Math.min(Math.max(view.scale * factor, fit / 4), Math.max(40, 4 * fit));
  view.x = x - ((x - view.x) * scale) / view.scale;
  view.y = y - ((y - view.y) * scale) / view.scale;
  view.scale = scale;
  panBy(0, 0);
}

function panBy(x, y) {
  const { image } = view;
  if (!image) return;
  const keep = 40; // screen px of the image that stay visible
  view.x = Math.min(Math.max(view.x + x, keep - image.width * view.scale), stage.clientWidth - keep);
  view.y = Math.min(Math.max(view.y + y, keep - image.height * view.scale), stage.clientHeight - keep);
  view.fitted = false;
  redraw("film");
}

function middleOfView() {
  const point = view.image && view.image.points[view.chosen];
  const [x, y] = point ? toScreen(point) : [-1, -1];
  const seen = x >= 0 && y >= 0 && x <= stage.clientWidth && y <= stage.clientHeight;
  return seen ? [x, y] : [stage.clientWidth / 2, stage.clientHeight / 2];
}

// --- Pointer

function pointerPlace(event) {
  const box = marks.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function nearest(place, ownOnly) {
  const { image } = view;
  let best = null;
  const offer = (points, own) => points.forEach((point, landmark) => {
    if (!point) return;
    const [x, y] = toScreen(point);
    const distance = Math.hypot(x - place[0], y - place[1]);
    // of overlapping dots grab the selected one, otherwise prefer one that can be moved
    const rank = distance - (own ? 1 : 0) - (own && landmark === view.chosen ? REACH : 0);
    if (distance <= REACH && (!best || rank < best.rank)) best = { landmark, own, rank };
  });
  if (image && image.truth && !ownOnly && isShown("truth")) offer(image.truth, false);
  if (image && isShown("points")) offer(image.points, true);
  return best;
}

function describeDot({ landmark, own }) {
  const { abbreviation, name } = landmarks[landmark];
  const words = [name === abbreviation ? abbreviation : `${abbreviation}  ${name}`];
  const error = errorOf(view.image, landmark);
  const score = scoreOf(view.image, landmark);
  const facts = [own && data.predicted ? (isChanged(view.image, landmark) ? "corrected" : "predicted") : "true"];
  if (own && !view.image.points[landmark]) facts[0] = "hidden: missing in the saved file";
  if (error !== null) facts.push(`error ${error.toFixed(2)} ${data.unit}`);
  if (own && score !== null) facts.push(`score ${score.toFixed(3)}`);
  return [...words, facts.join(", ")].join("\n");
}

function showTip(place) {
  const dot = nearest(place, false);
  marks.classList.toggle("over", Boolean(dot && dot.own));
  tip.hidden = !dot;
  if (!dot) return;
  tip.textContent = describeDot(dot);
  const left = place[0] + 14 + tip.offsetWidth < stage.clientWidth ? place[0] + 14 : place[0] - 14 - tip.offsetWidth;
  const top = Math.min(place[1] + 14, stage.clientHeight - tip.offsetHeight - 4);
  tip.style.left = `${Math.max(2, left)}px`;
  tip.style.top = `${Math.max(2, top)}px`;
}

function startPointer(event) {
  if (!view.image || view.drag || event.button > 1) return;
  const place = pointerPlace(event);
  const sets = event.button === 0 && toBePlaced() !== null; // a click, not a drag
  const hit = event.button === 0 && !sets ? nearest(place, true) : null;
  const landmark = hit ? hit.landmark : null;
  view.drag = { pointer: event.pointerId, place, landmark, start: hit ? view.image.points[landmark] : null, moved: false, sets };
  marks.setPointerCapture(event.pointerId);
  if (hit) chooseLandmark(hit.landmark);
}

function movePointer(event) {
  const place = pointerPlace(event);
  const drag = view.drag;
  if (!drag) return showTip(place);
  if (event.pointerId !== drag.pointer) return; // another finger
  const [x, y] = [place[0] - drag.place[0], place[1] - drag.place[1]];
  if (!drag.moved && Math.hypot(x, y) < 3) return; // a click with a trembling hand moves nothing
  tip.hidden = true;
  marks.classList.add("moving");
  drag.moved = true;
  if (drag.landmark === null) {
    panBy(x, y);
    drag.place = place;
  } else {
    const point = [drag.start[0] + x / view.scale, drag.start[1] + y / view.scale];
    view.image.points[drag.landmark] = insideImage(view.image, point);
    redraw("marks", "figures");
  }
}

function endPointer(keep) {
  const drag = view.drag;
  view.drag = null;
  marks.classList.remove("moving");
  if (drag && drag.sets && keep && !drag.moved) placeLandmark(toImage(drag.place));
  if (!drag || drag.landmark === null || !drag.moved) return;
  const after = view.image.points[drag.landmark];
  view.image.points[drag.landmark] = drag.start;
  if (keep) changePoint(drag.landmark, after, "moved");
  else redraw("marks", "figures");
}

marks.addEventListener("pointerdown", startPointer);
marks.addEventListener("pointermove", movePointer);
for (const [name, keep] of [["pointerup", true], ["pointercancel", false]]) {
  marks.addEventListener(name, (event) => {
    if (view.drag && event.pointerId === view.drag.pointer) endPointer(keep);
  });
}
marks.addEventListener("pointerleave", () => { tip.hidden = true; });
stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  tip.hidden = true;
  if (!view.drag) zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), pointerPlace(event));
}, { passive: false });

new ResizeObserver(() => {
  if (view.fitted) fitImage();
  else redraw("film");
}).observe(stage);
watchResolution();
