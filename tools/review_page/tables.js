// Tables that a click on a header sorts, blanks last. Click a row, or use the keyboard, to select it.

class SortableTable {
  // columns: {title, hint, kind: "name", "number" or "check", value(item), text(value, item), width, flag}
  constructor(id, label, columns, first, onChoose) {
    this.table = document.getElementById(id);
    this.table.setAttribute("aria-label", label);
    this.columns = columns.filter(Boolean);
    this.column = this.columns.find((column) => column.title === first.title) ?? this.columns[0];
    this.descending = Boolean(first.descending);
    this.onChoose = onChoose;
    this.items = [];
    this.rows = new Map();
    this.chosen = null;
    const group = document.createElement("colgroup");
    const head = document.createElement("tr");
    for (const column of this.columns) {
      const width = document.createElement("col");
      if (column.width) width.style.width = `${column.width}px`;
      group.append(width);
      const cell = document.createElement("th");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = column.title;
      button.title = `${column.hint ?? column.title}: sort`;
      button.addEventListener("click", () => this.sortBy(column));
      cell.className = column.kind === "number" ? "number" : column.kind === "check" ? "middle" : "";
      cell.scope = "col";
      cell.append(button);
      head.append(cell);
      column.cell = cell;
    }
    const top = document.createElement("thead");
    top.append(head);
    this.body = document.createElement("tbody");
    this.table.replaceChildren(group, top, this.body);
  }

  sortBy(column) {
    this.descending = this.column === column ? !this.descending : column.kind !== "name" && !column.lowFirst;
    this.column = column;
    this.render();
  }

  show(items) {
    this.items = items;
    this.render();
  }

  sorted() {
    const value = this.column.value;
    const sign = this.descending ? -1 : 1;
    const compare = (one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    };
    return [...this.items].sort(compare);
  }

  render() {
    const focused = this.body.contains(document.activeElement);
    this.order = this.sorted();
    this.rows.clear();
    this.body.replaceChildren(...this.order.map((item) => this.makeRow(item)));
    for (const column of this.columns) {
      if (column !== this.column) column.cell.removeAttribute("aria-sort");
      else column.cell.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
    }
    this.update();
    this.mark(this.chosen);
    if (focused && this.rows.has(this.chosen)) this.rows.get(this.chosen).row.querySelector("button").focus();
  }

  makeRow(item) {
    const row = document.createElement("tr");
    const cells = this.columns.map((column) => {
      const cell = document.createElement("td");
      row.append(cell);
      if (column.kind === "name") {
        const button = document.createElement("button");
        button.type = "button";
        button.tabIndex = -1;
        cell.append(button);
        return button;
      }
      if (column.kind === "check") {
        const box = document.createElement("input");
        box.type = "checkbox";
        box.tabIndex = -1; // use the key h or v
        box.addEventListener("click", (event) => event.stopPropagation());
        box.addEventListener("change", () => column.change(item, box.checked));
        box.setAttribute("aria-label", `${column.hint}: ${this.columns[0].value(item)}`);
        cell.className = "middle";
        cell.append(box);
        return box;
      }
      cell.className = column.kind === "number" ? "number" : "";
      return cell;
    });
    row.addEventListener("click", () => this.onChoose(item));
    this.rows.set(item, { row, cells });
    return row;
  }

  // Refresh the text and the marks of the rows; keep their order.
  update() {
    for (const [item, { row, cells }] of this.rows) {
      for (const [number, column] of this.columns.entries()) {
        const value = column.value(item);
        if (column.kind === "check") {
          cells[number].checked = Boolean(value);
          continue;
        }
        const text = value === null ? "" : column.text ? column.text(value, item) : String(value);
        if (cells[number].textContent !== text) cells[number].textContent = cells[number].title = text;
      }
      row.classList.toggle("changed", Boolean(this.columns[0].changed && this.columns[0].changed(item)));
      row.classList.toggle("off", Boolean(this.columns[0].off && this.columns[0].off(item)));
    }
  }

  mark(item) {
    for (const key of [this.chosen, item]) {
      const entry = this.rows.get(key);
      if (!entry) continue;
      const current = key === item;
      entry.row.setAttribute("aria-current", String(current));
      entry.row.querySelector("button").tabIndex = current ? 0 : -1;
      if (current) entry.row.scrollIntoView({ block: "nearest" });
    }
    this.chosen = item;
    if (!this.rows.has(item) && this.order && this.order.length) {
      this.rows.get(this.order[0]).row.querySelector("button").tabIndex = 0; // so that Tab still reaches the table
    }
  }

  // The item `step` rows after the selected one; the first, or last, if none is selected.
  neighbour(step) {
    const place = this.order.indexOf(this.chosen);
    if (place < 0) return this.order.at(step > 0 ? 0 : -1);
    return this.order[Math.min(Math.max(place + step, 0), this.order.length - 1)];
  }
}

const places = (digits) => (value) => value.toFixed(digits);
const lowFirst = { lowFirst: true };
const number = (title, hint, value, text, width, more) => (
  { title, hint, kind: "number", value, text, width, ...more }
);
const figures = new Map(); // by image: computed once until a point moves

function figuresOf(image) {
  if (!figures.has(image)) figures.set(image, imageFigures(image));
  return figures.get(image);
}

const isDoubtful = images.some((image) => image.verdict && image.verdict[0] !== "good");
const worstFirst = isDoubtful ? { title: "Verdict" } : hasTruth
  ? { title: "Mean", descending: true }
  : hasScore ? { title: "Score", descending: false } : { title: "Image" };
const imageTable = new SortableTable("images", "Images", [
  {
    title: "Image", kind: "name", value: (image) => image.name,
    text: (name, image) => (figuresOf(image).changed ? `• ${name}` : name),
    changed: (image) => figuresOf(image).changed > 0,
  },
  isJudged && {
    title: "Verdict", hint: "Can it be used?", width: 54, lowFirst: true,
    value: (image) => (image.verdict ? verdicts.indexOf(image.verdict[0]) : null),
    text: (rank, image) => image.verdict[0],
  },
  hasTruth && number("Mean", `Mean error, ${data.unit}`, (image) => figuresOf(image).error, places(2), 60),
  hasTruth && !isJudged
    && number("Max", `Largest error, ${data.unit}`, (image) => figuresOf(image).worst, places(2), 60),
  !hasTruth && hasScore && number("Score", "Mean score", (image) => figuresOf(image).score, places(3), 64, lowFirst),
  !hasTruth && hasScore && !isJudged // there is no room for it beside the verdict
    && number("Min", "Lowest score", (image) => figuresOf(image).lowest, places(3), 64, lowFirst),
  !hasTruth && !hasScore && number("Missing", "Missing points", (image) => figuresOf(image).missing, String, 74),
  {
    title: "✓", hint: "Reviewed", kind: "check", width: 26, value: (image) => Number(image.reviewed),
    change: (image, reviewed) => markReviewed(image, reviewed),
  },
], worstFirst, (image) => openImage(image));

const landmarkNumbers = landmarks.map((_, landmark) => landmark);
const landmarkTable = new SortableTable("landmarks", "Landmarks of this image", [
  {
    title: "Point", kind: "name", value: (landmark) => landmarks[landmark].abbreviation, width: 62,
    text: (name, landmark) => (isChanged(view.image, landmark) ? `• ${name}` : name),
    changed: (landmark) => isChanged(view.image, landmark),
    off: (landmark) => view.image.points[landmark] === null,
  },
  { title: "Name", value: (landmark) => landmarks[landmark].name },
  hasTruth && number("Error", `Error, ${data.unit}`, (landmark) => errorOf(view.image, landmark), places(2), 58),
  hasScore && number("Score", "Score", (landmark) => scoreOf(view.image, landmark), places(3), 60, lowFirst),
  {
    title: "Hide", hint: "Hidden", kind: "check", width: 42,
    value: (landmark) => Number(view.image.points[landmark] === null),
    change: (landmark, hidden) => hideLandmark(landmark, hidden),
  },
], hasTruth ? { title: "Error", descending: true } : hasScore ? { title: "Score" } : { title: "" }, (landmark) => {
  chooseLandmark(landmark);
  showPoint(landmark);
});

let total = []; // by landmark, over all images
const rate = `≤${data.threshold} ${data.unit}`;
const summaryTable = new SortableTable("summary", "Landmarks over all images", [
  { title: "Point", kind: "name", value: (landmark) => landmarks[landmark].abbreviation, width: 62 },
  number("n", "Images", (landmark) => total[landmark].count, String, 38),
  hasTruth && number("Mean", `Mean error, ${data.unit}`, (landmark) => total[landmark].error, places(2), 58),
  hasTruth && number(
    rate, `Share of images within ${data.threshold} ${data.unit}, %`, (landmark) => total[landmark].rate, places(0), 62,
    lowFirst,
  ),
  hasTruth && number("Max", `Largest error, ${data.unit}`, (landmark) => total[landmark].most, places(2), 54),
  !hasTruth && hasScore && number("Score", "Mean score", (landmark) => total[landmark].score, places(3), 60, lowFirst),
  !hasTruth && hasScore && number("Min", "Lowest score", (landmark) => total[landmark].lowest, places(3), 60, lowFirst),
  !hasTruth && !hasScore && number("Missing", "Missing points", (landmark) => total[landmark].missing, String, 74),
  (hasTruth || hasScore) && {
    title: "Where", hint: "The worst image", value: (landmark) => total[landmark].where?.name ?? null,
  },
], hasTruth ? { title: "Mean", descending: true } : hasScore ? { title: "Score" } : { title: "" }, (landmark) => {
  if (total[landmark].where) openImage(total[landmark].where);
  chooseLandmark(landmark);
});

function countTotals() {
  total = landmarkNumbers.map(landmarkFigures);
}
