// Shows the chosen text, hides rejected drafts on request, and tells about the round that is tapped.
const find = (name) => document.getElementById(name);
const texts = document.querySelector(".texts");

function show() {
  const chosen = { prompt: find("prompt").value, policy: find("policy").value };
  for (const part of texts.querySelectorAll("[data-prompt]")) {
    const { prompt, policy = chosen.policy } = part.dataset;
    part.hidden = prompt !== chosen.prompt || policy !== chosen.policy;
  }
  tell(null);
}

function tell(round) {
  for (const old of texts.querySelectorAll(".told")) old.classList.remove("told");
  const tree = round?.querySelector("del.tree");
  find("round").value = round ? [round.title, tree?.title].filter(Boolean).join("; ") : "";
  round?.classList.add("told");
}

find("prompt").addEventListener("change", show);
find("policy").addEventListener("change", show);
find("rejected").addEventListener("change", (event) => {
  texts.classList.toggle("kept-only", !event.target.checked);
});
texts.addEventListener("click", (event) => {
  if (event.target.closest("article")) tell(event.target.closest(".round"));
});
show(); // a browser may have kept other choices over a reload
texts.classList.toggle("kept-only", !find("rejected").checked);
