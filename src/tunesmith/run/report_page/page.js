const root = document.documentElement;

function speak(language) {
  root.lang = language;
  root.dataset.language = language.slice(0, 2);
}

document.getElementById("language").addEventListener("click", () => speak(root.lang === "en" ? "zh-CN" : "en"));
speak(navigator.language.startsWith("zh") ? "zh-CN" : "en");
