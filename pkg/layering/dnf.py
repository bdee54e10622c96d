# Runs inside an image, with its own Python, dnf and rpm: dnf.go starts it.
#
# usage: dnf.py resolve|search|fetch|transact < REQUEST
# The request and the answer (on descriptor 3) are JSON; an error is an answer
# {"error": KIND, "message": TEXT, …} with the kinds of pkg/fault.

import json
import os
import subprocess
import sys


class Failure(Exception):
    def __init__(self, kind, message, **more):
        super().__init__(message)
        self.answer = dict(more, error=kind, message=message)


def version(pkg):
    return '%s:%s-%s' % (pkg.epoch, pkg.version, pkg.release)


def checksum(pkg):
    """The checksum that the repository's metadata has for a package."""
    import hawkey
    names = {hawkey.CHKSUM_SHA256: 'sha256', hawkey.CHKSUM_SHA512: 'sha512'}
    kind, value = pkg.chksum
    if kind not in names:
        raise Failure('untrusted', 'the repository %s has no SHA-256 checksum for %s' % (pkg.reponame, pkg))
    return '%s:%s' % (names[kind], value.hex())


def open_base(spec):
    import dnf
    base = dnf.Base()
    base.conf.read()
    base.conf.substitutions.update_from_etc(base.conf.installroot, base.conf.varsdir)
    if not base.conf.substitutions.get('releasever'):
        found = dnf.rpm.detect_releasever(base.conf.installroot)
        base.conf.substitutions['releasever'] = found or os_release().get('VERSION_ID', '')
    base.conf.cachedir = spec['cache']
    base.conf.logdir = base.conf.persistdir = '/tmp'
    # A repository that cannot be read must not look like one without packages.
    base.conf.skip_if_unavailable = False
    base.conf.cacheonly = spec.get('cacheonly', False)
    base.read_all_repos()
    for repo in base.repos.iter_enabled():
        repo.skip_if_unavailable = False
        if spec.get('refresh') and not base.conf.cacheonly:
            repo._repo.expire()
    try:
        base.fill_sack(load_system_repo=True)
    except dnf.exceptions.RepoError as e:
        raise Failure('unavailable', str(e))
    return base


def os_release():
    with open('/etc/os-release') as f:
        pairs = [line.strip().split('=', 1) for line in f if '=' in line]
    return {key: value.strip('"') for key, value in pairs}


def resolve(spec):
    import dnf
    base = open_base(spec)
    # Before any name: dnf takes no files once there is a job.
    files = {}
    if spec['paths']:
        for path, pkg in zip(spec['paths'], base.add_remote_rpms(spec['paths'])):
            base.package_install(pkg)
            files[str(pkg)] = path
    for name in spec['install']:
        try:
            base.install(name)
        except dnf.exceptions.MarkingError:
            known = sorted({p.name for p in base.sack.query().available()})
            raise Failure('not found', name, known=known)
    for name in spec['upgrade']:
        try:
            base.upgrade(name)
        except dnf.exceptions.MarkingError:
            pass  # no repository has it
    for name in spec['remove']:
        base.remove(name)
    try:
        base.resolve(allow_erasing=True)
    except dnf.exceptions.DepsolveError as e:
        raise Failure('conflict', str(e))
    requested = {str(p) for name in spec['install'] + spec['upgrade'] for p in dnf.subject.Subject(name).get_best_query(base.sack)}
    install, remove, replaced = [], [], {}
    for item in base.transaction:
        if item.action == dnf.transaction.PKG_REINSTALLED:
            continue
        if item.action in dnf.transaction.FORWARD_ACTIONS:
            install.append(item.pkg)
        else:
            remove.append(item.pkg)
    for pkg in remove:
        for new in install:
            if new.name == pkg.name and new.arch == pkg.arch and item_replaces(new, pkg):
                replaced[str(new)] = pkg
    gone = [p for p in remove if p not in replaced.values()]
    return {
        'install': [{
            'name': p.name, 'version': version(p), 'arch': p.arch,
            'repository': '' if str(p) in files else p.reponame,
            'checksum': '' if str(p) in files else checksum(p),
            'path': files.get(str(p), ''),
            'size': p.downloadsize,
            'requested': str(p) in requested or str(p) in files,
            'replaces': version(replaced[str(p)]) if str(p) in replaced else '',
        } for p in install],
        'remove': [{'name': p.name, 'version': version(p), 'arch': p.arch} for p in gone],
    }


def search(spec):
    base = open_base(spec)
    found = []
    for p in base.sack.query().available().latest():
        text = '%s\n%s' % (p.name, p.summary)
        if all(word.lower() in text.lower() for word in spec['words']):
            found.append({'name': p.name, 'version': version(p), 'arch': p.arch, 'repository': p.reponame,
                          'size': p.downloadsize, 'summary': p.summary})
    return {'found': found}


def item_replaces(new, old):
    # Packages that may be installed several times (kernels) replace nothing.
    return not any(p.startswith('installonlypkg(') for p in map(str, new.provides))


def fetch(spec):
    import dnf
    base = open_base(spec)
    base.conf.destdir = spec['packages']
    wanted = []
    for p in spec['install']:
        named = [q for q in base.sack.query().available().filter(name=p['name'], arch=p['arch']) if version(q) == p['version']]
        if not named:
            raise Failure('gone', '%s %s' % (p['name'], p['version']))
        found = [q for q in named if checksum(q) == p['checksum']]
        if not found:
            raise Failure('untrusted', 'no repository has %s %s with the checksum %s any more' % (p['name'], p['version'], p['checksum']))
        wanted.append(found[0])
    for repo in base.repos.iter_enabled():
        repo.pkgdir = spec['packages']
    problems = []

    class Progress(dnf.callback.DownloadProgress):
        # The exception says only that every mirror was tried.
        def end(self, payload, status, msg):
            if msg:
                problems.append(msg)

    try:
        base.download_packages(wanted, progress=Progress())
    except dnf.exceptions.DownloadError as e:
        text = '; '.join([str(e).strip()] + problems)
        raise Failure('untrusted' if 'checksum' in text else 'unavailable', text)
    for pkg in wanted:
        if base.repos[pkg.reponame].gpgcheck:
            verify(base.repos[pkg.reponame], os.path.join(spec['packages'], os.path.basename(pkg.location)))
    return {}


def verify(repo, path):
    """Checks a package's signature against the keys of its repository alone."""
    keys = '/tmp/keys-' + repo.id
    if not os.path.isdir(keys):
        os.mkdir(keys)
        for url in repo.gpgkey:
            if not url.startswith('file://'):
                raise Failure('untrusted', 'the key %s of the repository %s is not a file of the image' % (url, repo.id))
            subprocess.run(['rpmkeys', '--dbpath', keys, '--import', url[len('file://'):]], check=False)
    done = subprocess.run(['rpmkeys', '--dbpath', keys, '--define', '_pkgverify_level signature', '--checksig', '-v', path],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise Failure('untrusted', '%s of the repository %s: %s' % (os.path.basename(path), repo.id, done.stdout.strip()))


def transact(spec):
    import rpm
    # What these plugins talk to, or make, is not there in the sandbox: it has no
    # system bus, no log and no way to mount.
    for name in ('audit', 'dbus_announce', 'fapolicyd', 'syslog', 'systemd_inhibit', 'unshare'):
        rpm.addMacro('__transaction_' + name, '%{nil}')
    rpm.setVerbosity(rpm.RPMLOG_INFO)  # else what scriptlets print to stdout is lost
    ts = rpm.TransactionSet()
    # Signatures were checked when the files were fetched, with the repository's
    # keys; the files are those by their checksums.
    ts.setVSFlags(rpm.RPMVSF_MASK_NOSIGNATURES)
    ts.setVfyLevel(rpm.RPMSIG_DIGEST_TYPE)
    ts.setProbFilter(rpm.RPMPROB_FILTER_OLDPACKAGE | rpm.RPMPROB_FILTER_REPLACEPKG)
    for path in spec['paths']:
        fd = os.open(path, os.O_RDONLY)
        try:
            ts.addInstall(ts.hdrFromFdno(fd), path, 'u')
        finally:
            os.close(fd)
    for p in spec['remove']:
        for h in ts.dbMatch('name', p['name']):
            if h['arch'] == p['arch']:
                ts.addErase(h)
    problems = ts.check()
    if problems:
        raise Failure('conflict', '\n'.join(str(p) for p in ts.problems()))
    ts.order()
    run = Run()
    out = open('/tmp/scriptlets', 'w+')
    run.out = ts.scriptFd = out
    problems = ts.run(run.callback, '')
    out.seek(0)
    sys.stdout.write(out.read())
    sys.stdout.flush()
    if run.failed:
        raise Failure('scriptlet', run.failed['what'], **run.failed)
    if problems:
        raise Failure('conflict', '\n'.join(str(p) for p in problems))
    return {}


class Run:
    """What rpm calls while it works."""

    def __init__(self):
        self.files = {}
        self.begin = 0
        self.failed = None

    def callback(self, reason, amount, total, key, data):
        import rpm
        if reason == rpm.RPMCALLBACK_INST_OPEN_FILE:
            self.files[key] = os.open(key, os.O_RDONLY)
            return self.files[key]
        if reason == rpm.RPMCALLBACK_INST_CLOSE_FILE:
            os.close(self.files.pop(key))
        elif reason == rpm.RPMCALLBACK_SCRIPT_START:
            self.begin = os.fstat(self.out.fileno()).st_size
        elif reason == rpm.RPMCALLBACK_SCRIPT_ERROR and not self.failed:
            with open('/tmp/scriptlets') as f:
                f.seek(self.begin)
                text = f.read()
            self.failed = {
                'package': str(key), 'what': '%%%s scriptlet failed' % rpm.tagnames.get(amount, str(amount)).lower(),
                'output': text,
            }
        elif reason in (rpm.RPMCALLBACK_UNPACK_ERROR, rpm.RPMCALLBACK_CPIO_ERROR) and not self.failed:
            self.failed = {'package': str(key), 'what': 'unpacking failed', 'output': ''}
        return None


def main():
    spec = json.load(sys.stdin)
    try:
        answer = {'resolve': resolve, 'search': search, 'fetch': fetch, 'transact': transact}[sys.argv[1]](spec)
    except Failure as e:
        answer = e.answer
    with os.fdopen(3, 'w') as f:
        json.dump(answer, f)


main()
