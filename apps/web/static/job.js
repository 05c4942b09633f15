// A job's page: asks for its state every second while it works, and shows it.

const key = new URLSearchParams(location.search).get('job') || '';
const base = `../job/${encodeURIComponent(key)}`;
const find = (selector) => document.querySelector(selector);
const STATES = { draft: 'not started', queued: 'waiting', running: 'at work', stopping: 'stopping', done: 'done',
                 stopped: 'stopped', failed: 'failed' };
const FIGURES = {
  psnr: ['PSNR on held-out photos', (v) => `${v.toFixed(2)} dB`], ssim: ['SSIM', (v) => v.toFixed(3)],
  views_registered: ['Photos used', String], primitives: ['Parts of the scene', (v) => v.toLocaleString('en')],
  mesh_faces: ['Faces of the mesh', (v) => v.toLocaleString('en')],
  mesh_watertight: ['Mesh is closed', (v) => v ? 'yes' : 'no'], seconds_total: ['Time', (v) => clock(v)],
  peak_memory_mb: ['Memory at most', (v) => `${Math.round(v).toLocaleString('en')} MB`], method: ['Method', String],
};
let shown = {}, view = null, armed = 0;

const clock = (seconds) => {
  const whole = Math.max(0, Math.round(seconds)), two = (n) => String(n).padStart(2, '0');
  const hours = Math.floor(whole / 3600), rest = `${Math.floor(whole / 60) % 60}:${two(whole % 60)}`;
  return hours ? `${hours}:${rest.padStart(5, '0')}` : rest;
};

const make = (name, words = '', facts = {}) => Object.assign(document.createElement(name), { textContent: words }, facts);

const ask = async (address, method = 'GET') => {
  const answer = await fetch(address, { method });
  const value = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw Object.assign(new Error(value.error), { status: answer.status });
  return value;
};

const complain = (words) => { find('#error').textContent = words; find('#error').hidden = !words; };

const act = async (button) => {
  if (button.dataset.do === 'delete' && Date.now() - armed > 5000) {
    armed = Date.now();
    button.textContent = 'Really delete?';
    setTimeout(() => { button.textContent = 'Delete'; }, 5000);
    return;
  }
  button.disabled = true;
  try {
    await ask(`${base}/${button.dataset.do}`, 'POST');
    complain('');
    if (button.dataset.do === 'delete') { find('#job').hidden = true; complain('This job was deleted.'); return; }
    show(await ask(base));
  } catch (error) {
    complain(error.message);
  } finally {
    button.disabled = false;
  }
};

const curve = (title, points, words) => {
  const figure = make('figure'), caption = make('figcaption', title);
  caption.append(make('b', words(points.at(-1)[1])));
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const place = ([x, y]) => `${300 * (x - left) / (right - left || 1)},${4 + 66 * (high - y) / (high - low || 1)}`;
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 300 74');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', `${title}: from ${words(ys[0])} to ${words(ys.at(-1))}`);
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline');
  line.setAttribute('points', points.map(place).join(' '));
  svg.append(line);
  figure.append(caption, svg);
  return figure;
};

const download = (row) => {
  const tr = make('tr'), last = make('td');
  tr.append(make('td', row.file), make('td', row.label));
  const link = () => {
    const a = make('a', `Download ${row.size}`, { className: 'button', href: `${base}/file/${row.file}?download=true` });
    a.setAttribute('aria-label', `Download ${row.file}, ${row.size}`);
    last.replaceChildren(a);
    return a;
  };
  if (row.ready) link();
  else {
    const button = make('button', 'Make it', { type: 'button' });
    button.setAttribute('aria-label', `Make ${row.file}`);
    button.addEventListener('click', async () => {
      button.disabled = true;
      button.textContent = 'Making …';
      try {
        row.size = (await ask(`${base}/export?file=${encodeURIComponent(row.file)}`, 'POST')).size;
        link().focus();
      } catch (error) {
        button.disabled = false;
        button.textContent = 'Make it';
        complain(`${row.file}: ${error.message}`);
      }
    });
    last.append(button);
  }
  tr.append(last);
  return tr;
};

const show = (job) => {
  const before = shown, working = ['running', 'stopping'].includes(job.state);
  shown = job;
  document.title = `${job.title}: ${STATES[job.state]}`;
  find('#job').hidden = false;
  find('h1').textContent = job.title;
  find('.pill').textContent = STATES[job.state];
  find('.pill').className = `pill ${job.state}`;
  find('[data-do="cancel"]').hidden = !['queued', 'running'].includes(job.state);
  find('[data-do="resume"]').hidden = !job.resumable;
  find('[data-do="delete"]').hidden = ['queued', 'running', 'stopping'].includes(job.state);
  const ahead = job.position === 0 ? 'next in line' : `${job.position} before this one`;
  find('#message').textContent = job.state === 'queued' ? `Waiting: ${ahead}. ${job.message}` : job.message;
  find('#work').hidden = !working;
  const share = job.steps ? 100 * job.step / job.steps : 0;
  find('.bar i').style.width = `${share}%`;
  find('.bar').setAttribute('aria-valuenow', Math.round(share));
  const facts = [job.words || 'Starting', job.steps && `${job.step.toLocaleString('en')} of ${job.steps.toLocaleString('en')}`,
                 job.eta_s != null && `${clock(job.eta_s)} left`, job.pieces && `${job.pieces.toLocaleString('en')} parts`];
  find('#stage').textContent = facts.filter(Boolean).join(' · ');
  find('#view').ariaBusy = String(job.renewing);
  if (job.view !== before.view && job.view) {
    find('#view').hidden = false;
    find('#view').src = `${base}/file/view?of=${job.view}`;
  }
  find('#picture').hidden = !job.picture || Boolean(job.view);
  if (job.picture && job.picture !== before.picture) find('#picture').src = `${base}/file/picture?of=${job.picture}`;
  const { psnr = [], loss = [] } = job.curves || {};
  find('#curves').replaceChildren(...[
    psnr.length > 1 && curve('PSNR', psnr, (y) => `${y.toFixed(1)} dB`),
    loss.length > 1 && curve('Loss', loss, (y) => y.toPrecision(3))].filter(Boolean));
  find('#result').hidden = job.state !== 'done';
  if (job.state === 'done' && before.state !== 'done') {
    find('#downloads').replaceChildren(...job.downloads.map(download));
    find('#film').src = job.film ? `${base}/file/turntable.mp4` : '';
    find('#figures').replaceChildren(...Object.entries(FIGURES).filter(([name]) => name in job.metrics).flatMap(
      ([name, [words, write]]) => [make('dt', words), make('dd', write(job.metrics[name]))]));
  }
  find('#said-title').hidden = !job.sentences.length;
  if (job.sentences.length !== before.sentences?.length)
    find('#said').replaceChildren(...job.sentences.map((words) => make('li', words)));
  find('#kept').textContent = [job.size && `${job.size} on this server`, job.kept].filter(Boolean).join(', ');
};

const watch = async () => {
  let pause = 1000;
  try {
    show(await ask(base));
    complain('');
    const quiet = ['done', 'failed', 'stopped'].includes(shown.state) && !shown.renewing;
    if (quiet || document.hidden) pause = 10000;
  } catch (error) {
    if (error.status === 404) { find('#job').hidden = true; complain(error.message); return; }
    complain('The server cannot be reached; trying again.');
    pause = 3000;
  }
  setTimeout(watch, pause);
};

// The viewer says where it stands and is told so again after it was loaded anew, so a preview renews under the eye.
addEventListener('message', ({ source, data }) => {
  if (source !== find('#view').contentWindow || typeof data !== 'object' || data === null) return;
  if (data.maquette === 'view') view = data.view;
  if (data.maquette === 'ready' && view) source.postMessage({ maquette: 'look', view }, '*');
});
document.addEventListener('visibilitychange', () => { if (!document.hidden && shown.state) ask(base).then(show, () => {}); });
for (const button of document.querySelectorAll('[data-do]')) button.addEventListener('click', () => act(button));
new ResizeObserver(() => parent.postMessage({ maquette: 'height', height: document.documentElement.scrollHeight }, location.origin))
  .observe(document.body);
watch();
