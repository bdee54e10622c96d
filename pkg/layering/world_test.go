package layering_test

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/layering"
)

// created is the time that the lab's base images carry.
var created = time.Unix(1735689600, 0)

var scratch struct {
	dir   string
	roots map[string]string // tool → directory
}

func TestMain(m *testing.M) {
	if os.Getenv(killedDir) != "" {
		os.Exit(m.Run()) // it will not get to cleaning up
	}
	var err error
	scratch.roots = make(map[string]string)
	if scratch.dir, err = os.MkdirTemp("", "kedge-layering-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(scratch.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// world is a base image with a package manager, and a repository for it.
type world struct {
	tool   string // apt, dnf or dnf5
	engine string // as locks have it
	made   string // what hack/lab/packages.sh made
	base   layering.Base
	etc    string // of the host
	repo   *repository
	work   string
	cache  string
}

// each runs a rule on every engine.
func each(t *testing.T, rule func(*testing.T, *world)) {
	for _, tool := range []string{"apt", "dnf", "dnf5"} {
		t.Run(tool, func(t *testing.T) { rule(t, newWorld(t, tool)) })
	}
}

func newWorld(t testing.TB, tool string) *world {
	t.Helper()
	made := packages(t)
	engine := strings.TrimSuffix(tool, "5")
	w := &world{tool: tool, engine: engine, made: made, work: t.TempDir(), cache: t.TempDir(), etc: t.TempDir()}
	w.base = layering.Base{Root: labRoot(t, made, tool), Created: created}
	w.repo = serve(t, filepath.Join(made, map[string]string{"apt": "deb", "dnf": "rpm"}[engine]))
	w.configure(t, w.repo.URL)
	return w
}

// labRoot unpacks a root of the lab, once for all tests.
func labRoot(t testing.TB, made, tool string) string {
	t.Helper()
	if scratch.roots[tool] == "" {
		scratch.roots[tool] = unpack(t, filepath.Join(made, tool+".tar"), filepath.Join(scratch.dir, tool))
	}
	return scratch.roots[tool]
}

// packages returns what hack/lab/packages.sh makes.
func packages(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("makes roots with package managers, some minutes once, and installs packages in them")
	}
	lab.NeedRoot(t)
	lab.Need(t, "bwrap")
	made, err := lab.Make(t.Context(), "packages.sh")
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func unpack(t testing.TB, archive, dir string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Command(t.Context(), "tar", "-C", dir, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xf", archive); err != nil {
		t.Fatal(err)
	}
	return dir
}

// configure writes the host's repository files: one that needs no signature.
func (w *world) configure(t testing.TB, url string) {
	t.Helper()
	write(t, filepath.Join(w.etc, "apt/sources.list"), "deb [trusted=yes] "+url+" ./\n")
	write(t, filepath.Join(w.etc, "yum.repos.d/lab.repo"), "[lab]\nname=lab\nbaseurl="+url+"\ngpgcheck=0\n")
}

// configureSigned is configure for a repository that is signed with the lab's key.
func (w *world) configureSigned(t *testing.T, url string) {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(w.made, "keys/lab.asc"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(w.etc, "apt/keyrings/lab.asc"), string(key))
	write(t, filepath.Join(w.etc, "pki/rpm-gpg/lab.asc"), string(key))
	write(t, filepath.Join(w.etc, "apt/sources.list"), "deb [signed-by=/etc/apt/keyrings/lab.asc] "+url+" ./\n")
	write(t, filepath.Join(w.etc, "yum.repos.d/lab.repo"), "[lab]\nname=lab\nbaseurl="+url+"\ngpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/lab.asc\n")
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// repository serves a directory; with files in replaced, others instead.
type repository struct {
	*httptest.Server
	mu       sync.Mutex
	replaced map[string][]byte // by base name
	asked    []string
}

func serve(t testing.TB, dir string) *repository {
	r := &repository{replaced: make(map[string][]byte)}
	files := http.FileServer(http.Dir(dir))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		name := filepath.Base(req.URL.Path)
		r.mu.Lock()
		r.asked = append(r.asked, name)
		data, ok := r.replaced[name]
		r.mu.Unlock()
		if ok {
			_, _ = w.Write(data)
			return
		}
		files.ServeHTTP(w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *repository) replace(name string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replaced[name] = data
}

// requests returns the names of files that were asked for since the last call.
func (r *repository) requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := r.asked
	r.asked = nil
	return asked
}

func (w *world) open(t testing.TB) *layering.Session {
	t.Helper()
	s, err := layering.Open(t.Context(), w.base, w.options(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) close(t testing.TB, s *layering.Session) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(w.work, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("the session left %q (%v)", left, err)
	}
}

func (w *world) options(t testing.TB) layering.Options {
	level := slog.LevelInfo
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	return layering.Options{
		Work: w.work, Cache: w.cache, HostEtc: w.etc,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})),
	}
}

// result is a layer with what is in it.
type result struct {
	*layering.Layer
	lock  *layering.Lock
	files map[string]*entry
}

type entry struct {
	tar.Header
	content string
}

// add resolves, fetches and makes.
func (w *world) add(t *testing.T, req layering.Request) (*result, error) {
	t.Helper()
	s := w.open(t)
	defer w.close(t, s)
	return build(t.Context(), s, req)
}

func build(ctx context.Context, s *layering.Session, req layering.Request) (*result, error) {
	lock, err := s.Resolve(ctx, req)
	if err != nil {
		return nil, err
	}
	return apply(ctx, s, lock)
}

func apply(ctx context.Context, s *layering.Session, lock *layering.Lock) (*result, error) {
	if err := s.Fetch(ctx, lock); err != nil {
		return nil, err
	}
	layer, err := s.Make(ctx, lock)
	if err != nil {
		return nil, err
	}
	files, err := readLayer(layer.Path)
	return &result{Layer: layer, lock: lock, files: files}, err
}

// mustAdd is add for requests of names that succeed.
func (w *world) mustAdd(t *testing.T, names ...string) *result {
	t.Helper()
	r, err := w.add(t, layering.Request{Install: names})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func readLayer(path string) (map[string]*entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	files := make(map[string]*entry)
	in := tar.NewReader(f)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(in)
		if err != nil {
			return nil, err
		}
		files[strings.TrimSuffix(h.Name, "/")] = &entry{Header: *h, content: string(content)}
	}
}

// has says what of the names is not in the layer.
func (r *result) has(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if r.files[n] == nil {
			t.Errorf("the layer lacks %s", n)
		}
	}
}

func (r *result) lacks(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if e := r.files[n]; e != nil {
			t.Errorf("the layer has %s: %.200q", n, e.content)
		}
	}
}

// installed returns the names of the lock's packages.
func (r *result) installed() string {
	var names []string
	for _, p := range r.lock.Install {
		names = append(names, p.Name+" "+strings.TrimSuffix(strings.TrimPrefix(p.Version, "0:"), "-1"))
	}
	return strings.Join(names, ", ")
}
