// A visitor's jobs: what each is about, how far it is, and what can be done with it.

const find = (selector) => document.querySelector(selector);
const make = (name, words = '', facts = {}) => Object.assign(document.createElement(name), { textContent: words }, facts);
const STATES = { queued: 'waiting', running: 'at work', stopping: 'stopping', done: 'done', stopped: 'stopped', failed: 'failed' };
let last = '';

const button = (words, job, action) => {
  const made = make('button', words, { type: 'button' });
  made.setAttribute('aria-label', `${words} ${job.title}`);
  made.addEventListener('click', async () => {
    if (action === 'delete' && made.textContent === words) {
      made.textContent = 'Really delete?';
      setTimeout(() => { made.textContent = words; }, 5000);
      return;
    }
    made.disabled = true;
    const answer = await fetch(`../job/${job.job}/${action}`, { method: 'POST' });
    const error = answer.ok ? '' : (await answer.json()).error;
    last = '';
    await renew();
    find('#error').textContent = error;
    find('#error').hidden = !error;
  });
  return made;
};

const card = (job) => {
  const made = make('article', '', { className: 'card' }), row = make('div', '', { className: 'row' });
  const title = make('h1'), actions = make('span', '', { className: 'row' });
  title.append(make('a', job.title, { href: `job?job=${job.job}`, target: '_blank' }));
  row.append(title, make('span', STATES[job.state], { className: `pill ${job.state}` }), actions);
  if (['queued', 'running'].includes(job.state)) actions.append(button('Cancel', job, 'cancel'));
  if (job.resumable) actions.append(button('Resume', job, 'resume'));
  if (['done', 'stopped', 'failed'].includes(job.state)) actions.append(button('Delete', job, 'delete'));
  const ahead = job.position === 0 ? 'next in line' : `${job.position} before this one`;
  const facts = [job.kind === 'recon' ? 'photos' : 'words', new Date(1000 * job.created).toLocaleString(),
                 job.state === 'queued' && ahead, job.size, job.message, job.kept].filter(Boolean);
  made.append(row, make('small', facts.join(' · ')));
  return made;
};

const renew = async () => {
  const answer = await fetch('../jobs'), jobs = answer.ok ? await answer.json() : [];
  const now = JSON.stringify(jobs);
  if (now === last) return;
  last = now;
  find('#none').hidden = jobs.length > 0;
  find('#list').replaceChildren(...jobs.map(card));
};

const watch = async () => {
  if (!document.hidden) await renew().catch(() => {});
  setTimeout(watch, 2000);
};

new ResizeObserver(() => parent.postMessage({ maquette: 'height', height: document.documentElement.scrollHeight }, location.origin))
  .observe(document.body);
watch();
