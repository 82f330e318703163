// Tables that can be sorted by each column and filtered, and that draw only as much as is asked for.

const FIRST_ROWS = 25;

/**
 * Makes a table. A column is `{title, value, show, isText, hint}`: `value` gives what a row is
 * sorted by, `show` what stands there, as text or an element; `chosen` is called with a row that is
 * clicked. The table is sorted by the column `sorted`, the greatest first.
 */
const table = ({
  name,
  columns,
  rows: given,
  sorted,
  empty = "Nothing was recorded.",
  isAscending = false,
  extra = null,
}) => {
  const order = { column: sorted, isAscending };
  let all = given;
  let limit = FIRST_ROWS;
  const body = el("tbody", {});
  const count = el("output", { class: "note" });
  const filter = el("input", {
    type: "search",
    placeholder: "Filter",
    "aria-label": `Filter ${name}`,
    autocomplete: "off",
    spellcheck: "false",
  });
  const more = el("div", { class: "more" });
  const headings = columns.map((column, at) => {
    const sort = () => {
      // A second press turns the order round; texts begin with A, numbers with the greatest.
      order.isAscending = order.column === at ? !order.isAscending : Boolean(column.isText);
      order.column = at;
      draw();
    };
    return el(
      "th",
      { scope: "col", class: column.isText ? "text" : "", title: column.hint },
      el(
        "button",
        { type: "button", class: "plain", on: { click: sort } },
        column.title,
        el("span", { class: "arrow", "aria-hidden": "true" }),
      ),
    );
  });
  const said = (column, row) => (column.show ? column.show(row) : String(column.value(row)));
  /** What a person may filter by: every text of the row. */
  const searched = new Map();
  const textIn = (row) => {
    if (!searched.has(row)) {
      const cells = columns
        .filter((column) => column.isText)
        .map((column) => String(column.value(row) ?? ""));
      searched.set(row, [...cells, extra ? extra(row) : ""].join("\n").toLowerCase());
    }
    return searched.get(row);
  };
  const compare = (a, b) => {
    const value = columns[order.column].value;
    const [first, second] = [value(a), value(b)];
    // What is absent comes last in either order.
    if (first === null || second === null) return (first === null) - (second === null);
    const sign = typeof first === "number" ? first - second : first.localeCompare(second, "en");
    return order.isAscending ? sign : -sign;
  };
  const draw = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = all.filter((row) => words.every((word) => textIn(row).includes(word))).sort(compare);
    const shown = kept.slice(0, limit);
    body.replaceChildren(
      ...shown.map((row) =>
        el(
          "tr",
          {},
          columns.map((column) => el("td", { class: column.isText ? "text" : "" }, said(column, row))),
        ),
      ),
    );
    if (kept.length === 0)
      body.append(
        el(
          "tr",
          {},
          el(
            "td",
            { class: "text note", colspan: String(columns.length) },
            all.length === 0 ? empty : "No row matches.",
          ),
        ),
      );
    headings.forEach((heading, at) => {
      if (at === order.column)
        heading.setAttribute("aria-sort", order.isAscending ? "ascending" : "descending");
      else heading.removeAttribute("aria-sort");
    });
    count.textContent =
      words.length > 0 ? `${whole(kept.length)} of ${plural(all.length, "row")}` : plural(all.length, "row");
    const left = kept.length - shown.length;
    const show = (by) => () => {
      limit += by;
      draw();
    };
    more.replaceChildren(
      ...(left > 0
        ? [
            action(`Show ${whole(Math.min(left, 100))} more`, show(100)),
            left > 100 ? action(`Show all ${whole(kept.length)}`, show(left)) : "",
          ]
        : []),
    );
  };
  filter.addEventListener(
    "input",
    afterTyping(() => {
      limit = FIRST_ROWS;
      draw();
    }),
  );
  const element = el(
    "div",
    { class: "table" },
    el("div", { class: "controls" }, el("label", { class: "search" }, filter), count),
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
      el(
        "table",
        {},
        el("caption", { class: "hidden" }, name),
        el("thead", {}, el("tr", {}, headings)),
        body,
      ),
    ),
    more,
  );
  draw();
  return {
    element,
    /** Shows other rows. */
    show: (rows) => {
      all = rows;
      searched.clear();
      draw();
    },
  };
};
