// Choices reach the server before whatever is pressed after them. trame holds choices back while a call is under way,
// and for a moment after it, but passes calls on at once; the server takes up what it is sent in that order.
if (!window.nephiSends) {
  window.nephiSends = true;
  const call = trame.trigger;
  const held = () => trame.state.dirtyKeys;
  const sendChoices = async () => {
    if (!trame.client.isConnected()) return;
    const keys = [...held()], changes = keys.map(key => ({ key, value: trame.state.get(key) }));
    held().clear();
    await trame.client.getRemote().Trame.updateState(changes).catch(() => trame.state.dirty(...keys));
  };
  // what needs the views waits for them, but for the dialog with files
  const early = ['begin', 'browse', 'enter'];
  const started = new Promise(resolve => trame.state.watch(['ready'], ready => ready && resolve()));
  trame.trigger = (...what) => {
    if (!trame.state.get('ready') && !early.includes(what[0])) return started.then(() => trame.trigger(...what));
    if (held().size) sendChoices();
    return call(...what);
  };
  // links, as of files to download, do not go the way of calls: they wait for the answer
  document.addEventListener('click', async event => {
    const link = event.isTrusted && event.target.closest('a[href]');
    if (!link || !(held().size || trame.client.isBusy())) return;
    event.preventDefault();
    await sendChoices();
    link.click();
  }, true);
  // Views are drawn in the size that was asked for last, maybe by another tab: the one that is looked at asks again. The
  // library asks when it is told of another size, so that one stays until it has been told, however long a frame takes.
  window.addEventListener('focus', () => {
    const views = document.querySelector('.views'), area = views?.querySelector('.remote-controlled-area');
    if (!area || views.style.paddingRight) return;
    const width = () => area.getBoundingClientRect().width, before = width();
    const told = new ResizeObserver(() => {
      if (area.isConnected && width() === before) return;
      told.disconnect();
      requestAnimationFrame(() => { views.style.paddingRight = ''; });
    });
    views.style.paddingRight = '1px';
    told.observe(area);
  });
  // A picture is moved by the mouse; what the keyboard needs stands beside it: the slider, Reset. It is no stop of Tab, which
  // the library makes of it.
  const named = area => {
    const title = area.closest('.layout-grid-item')?.querySelector('.title')?.innerText;
    area.tabIndex = -1;
    area.setAttribute('role', 'img');
    area.setAttribute('aria-label', `${title} view`);
  };
  new MutationObserver(changes => changes.forEach(({ target }) => {
    if (target.tabIndex === 0 && target.matches('.remote-controlled-area')) named(target);
  })).observe(document.documentElement, { subtree: true, attributes: true, attributeFilter: ['tabindex'] });
}
