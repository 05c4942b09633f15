// Two results side by side: what one viewer's camera does, the other's does too, each in units of its own scene.

const find = (selector) => document.querySelector(selector);
const frames = [...document.querySelectorAll('iframe')], choices = [find('#left'), find('#right')];
let known = '', view = null;

// Asking for a job's state lets the page of its viewer be made where there is none yet.
const open = async (i) => {
  const key = choices[i].value, answer = await fetch(`../job/${key}`), job = answer.ok ? await answer.json() : {};
  if (choices[i].value !== key) return;
  if (!job.view) { setTimeout(open, 1500, i); return; }
  const address = `../job/${key}/file/view?of=${job.view}`;
  if (frames[i].getAttribute('src') !== address) frames[i].src = address;
};

const renew = async () => {
  const answer = await fetch('../jobs'), jobs = answer.ok ? await answer.json() : [];
  const done = jobs.filter((job) => job.state === 'done').reverse();
  find('#none').hidden = done.length > 1;
  find('#pair').hidden = done.length < 2;
  const now = JSON.stringify(done.map((job) => job.job));
  if (done.length < 2 || now === known) return;
  known = now;
  choices.forEach((choice, i) => {
    const before = choice.value;
    choice.replaceChildren(...done.map((job) => new Option(job.title, job.job)));
    choice.value = done.some((job) => job.job === before) ? before : done.at(i - 2).job;
    open(i);
  });
};

addEventListener('message', ({ source, data }) => {
  const from = frames.findIndex((frame) => frame.contentWindow === source);
  if (from < 0 || typeof data !== 'object' || data === null) return;
  if (data.maquette === 'view') {
    view = data.view;
    frames[1 - from].contentWindow.postMessage({ maquette: 'look', view }, '*');
  }
  if (data.maquette === 'ready' && view) source.postMessage({ maquette: 'look', view }, '*');
});
choices.forEach((choice, i) => choice.addEventListener('change', () => open(i)));

const watch = async () => {
  if (!document.hidden) await renew().catch(() => {});
  setTimeout(watch, 3000);
};

new ResizeObserver(() => parent.postMessage({ maquette: 'height', height: document.documentElement.scrollHeight }, location.origin))
  .observe(document.body);
watch();
