// Back-to-front order of splats by depth along the viewing direction: a radix sort in a thread of its own.

// Fills `order` with the indices of `positions` [3N], farthest along (x, y, z) first. Two passes of 11 bits over depths
// in 2^22 steps within +-reach; what lies beyond is all equally far. scratch: { keys, swap } Uint32Array [N] each.
function sortBackToFront(positions, x, y, z, reach, order, scratch) {
  const count = order.length, { keys, swap } = scratch;
  const low = new Uint32Array(2048), high = new Uint32Array(2048);
  const scale = 4194303 / (2 * reach);
  for (let i = 0, j = 0; i < count; i++, j += 3) {
    const depth = x * positions[j] + y * positions[j + 1] + z * positions[j + 2];
    const key = Math.max(0, Math.min(4194303, (reach - depth) * scale)) >>> 0;
    keys[i] = key;
    low[key & 2047]++;
    high[key >>> 11]++;
  }
  for (let b = 0, l = 0, h = 0; b < 2048; b++) {
    const inLow = low[b], inHigh = high[b];
    low[b] = l, high[b] = h;
    l += inLow, h += inHigh;
  }
  for (let i = 0; i < count; i++) swap[low[keys[i] & 2047]++] = i;
  for (let i = 0; i < count; i++) order[high[keys[swap[i]] >>> 11]++] = swap[i];
}

function sorterMain() {
  let positions, reach, scratch;
  self.onmessage = ({ data }) => {
    if (data.positions) {
      ({ positions, reach } = data);
      const count = positions.length / 3;
      scratch = { keys: new Uint32Array(count), swap: new Uint32Array(count) };
      return;
    }
    const { direction, order } = data, began = performance.now();
    sortBackToFront(positions, ...direction, reach, order, scratch);
    self.postMessage({ direction, order, ms: performance.now() - began }, [order.buffer]);
  };
}

// Sorts for the newest direction asked for, one sort at a time; calls `deliver(order, direction, ms)`.
class Sorter {
  constructor(positions, reach, deliver) {
    this.deliver = deliver;
    this.count = positions.length / 3;
    this.busy = false;
    this.wanted = null;
    this.spare = new Uint32Array(this.count);
    const code = `${sortBackToFront}\n(${sorterMain})()`;
    const url = URL.createObjectURL(new Blob([code], { type: 'text/javascript' }));
    this.worker = new Worker(url);
    URL.revokeObjectURL(url);
    this.worker.onmessage = ({ data }) => this.done(data);
    this.worker.postMessage({ positions, reach });
  }

  want(direction) {
    if (this.busy && dot(direction, this.current) === dot(direction, direction)) return;
    this.wanted = direction;
    if (!this.busy) this.next();
  }

  next() {
    this.busy = true;
    const message = { direction: this.wanted, order: this.spare };
    this.current = this.wanted;
    this.wanted = null;
    this.worker.postMessage(message, [message.order.buffer]);
  }

  done({ order, direction, ms }) {
    this.spare = order;
    this.busy = false;
    this.deliver(order, direction, ms);  // copies the order to the graphics card, so that the array can go back
    if (this.wanted) this.next();
  }
}
