// Findings: what costs, what shows it, what to do.

{
  const LINES = 6;
  const list = byId("finding-list");
  for (const finding of profile.findings) {
    const evidence = finding.evidence.map((line) => el("li", {}, line));
    const rest = evidence.splice(LINES);
    list.append(
      el(
        "li",
        { class: "finding" },
        el(
          "div",
          { class: "finding-head" },
          el("h3", {}, finding.title),
          el(
            "span",
            { class: "cost" },
            el("strong", {}, duration(finding.cost_ns)),
            ` ${percent(finding.cost_ns, LENGTH)} of the recording`,
          ),
        ),
        el(
          "div",
          { class: "cost-bar", "aria-hidden": "true" },
          el("span", { style: { width: `${Math.min(100, (100 * finding.cost_ns) / LENGTH)}%` } }),
        ),
        evidence.length > 0 ? el("ul", { class: "evidence" }, evidence) : null,
        rest.length > 0
          ? el(
              "details",
              {},
              el("summary", {}, `${plural(rest.length, "more line")}`),
              el("ul", { class: "evidence" }, rest),
            )
          : null,
        finding.advice
          ? el("p", { class: "advice" }, el("strong", {}, "What to do: "), finding.advice)
          : null,
      ),
    );
  }
  if (profile.findings.length === 0) {
    list.replaceWith(
      el(
        "p",
        { class: "note" },
        "Nothing stands out. The time line and the flame graph show where the time went.",
      ),
    );
  }
}
