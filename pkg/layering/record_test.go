package layering

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kedge-os/kedge/pkg/fault"
)

// TestRecord: a derived image says what it was made of, and gives it back.
func TestRecord(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	file := filepath.Join(t.TempDir(), "layer.tar")
	if err := os.WriteFile(file, []byte("a layer"), 0o644); err != nil {
		t.Fatal(err)
	}
	built := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	marshal := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	config := marshal(v1.Image{
		Created: &built, Config: v1.ImageConfig{Labels: map[string]string{"containers.bootc": "1"}},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString("base")}}, History: []v1.History{{CreatedBy: "the builder"}},
	})
	manifest := marshal(v1.Manifest{Layers: []v1.Descriptor{{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromString("blob"), Size: 4}}})
	base := BaseImage{Digest: digest.FromBytes(manifest).String(), Manifest: manifest, Config: config}
	req := Request{Install: []string{"htop"}, Files: []string{"/root/agent.deb"}, Remove: []string{"nano"}}
	lock := &Lock{
		Engine: "apt", Inactive: []string{"curl"},
		Install: []Package{{Name: "htop", Version: "3.4.1-5", Arch: "amd64", Checksum: digest.FromString("htop").String(), Size: 4, Repository: "Debian", Requested: true}},
		Remove:  []Package{{Name: "nano", Version: "8.4-1", Arch: "amd64"}},
	}
	layer := &Layer{Path: file, DiffID: digest.FromString("a layer").String(), Size: 7, Secrets: []string{"/etc/ssh/ssh_host_rsa_key"}}
	if _, err := (Layout{Root: root}).Add("localhost/kedge/os:1-2", base, req, lock, layer); err != nil {
		t.Fatal(err)
	}
	list, err := Layout{Root: root}.Images()
	if err != nil || len(list) != 1 {
		t.Fatalf("the layout has %+v (%v), want one image", list, err)
	}
	s := list[0]
	req.Files = nil // a path of this host is nothing to another
	if diff := cmp.Diff(Record{Base: base.Digest, Format: Format, Request: req, Lock: *lock, Secrets: layer.Secrets}, s.Record); diff != "" {
		t.Errorf("the record: %s", diff)
	}
	if n := len(s.Manifest.Layers); n != 2 || s.Manifest.Layers[0].Digest != digest.FromString("blob") || s.Manifest.Layers[1].Digest.String() != layer.DiffID {
		t.Errorf("layers: %+v, want the base's and the new one", s.Manifest.Layers)
	}
	var c v1.Image
	if err := (Layout{Root: root}).readJSON(s.Manifest.Config.Digest, &c); err != nil {
		t.Fatal(err)
	}
	if h := c.History; len(h) != 2 || h[1].CreatedBy != "kedge pkg: add htop, remove nano" || !h[1].Created.Equal(built) {
		t.Errorf("history: %+v", h)
	}
	if c.Config.Labels["containers.bootc"] != "1" || len(c.RootFS.DiffIDs) != 2 {
		t.Errorf("the config lost what the base's has: %+v", c)
	}
	if _, err := ReadRecord(map[string]string{LabelBase: "x", LabelLock: "{}", LabelRequest: "{}", LabelSecrets: "no list"}); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("labels that cannot be read: %v, want corrupt", err)
	}
}

// TestCheckDatabase: after a transaction the database has what the base had and
// the lock says, and nothing else.
func TestCheckDatabase(t *testing.T) {
	p := func(name, version string) Package { return Package{Name: name, Version: version, Arch: "all"} }
	base := []Package{p("editor", "1"), p("kernel", "1"), p("tool", "1")}
	lock := &Lock{
		Install: []Package{{Name: "tool", Version: "2", Arch: "all", Replaces: "1", Checksum: "sha256:00"}, {Name: "vi", Version: "1", Arch: "all", Requested: true}},
		Remove:  []Package{p("editor", "1")},
	}
	for _, tc := range []struct {
		name string
		got  []Package
		say  string
	}{
		{"as it should be", []Package{p("kernel", "1"), p("tool", "2"), p("vi", "1")}, ""},
		{"not installed", []Package{p("kernel", "1"), p("tool", "2")}, "vi 1 is missing"},
		{"not replaced", []Package{p("kernel", "1"), p("tool", "1"), p("vi", "1")}, "tool 1 is there"},
		{"not removed", []Package{p("editor", "1"), p("kernel", "1"), p("tool", "2"), p("vi", "1")}, "editor 1 is there"},
		{"one of the base is gone", []Package{p("tool", "2"), p("vi", "1")}, "kernel 1 is missing"},
		{"one that nobody chose", []Package{p("kernel", "1"), p("miner", "6"), p("tool", "2"), p("vi", "1")}, "miner 6 is there"},
		{"half-configured", []Package{p("kernel", "1"), p("tool", "2"), p("vi", "1 (half-configured)")}, "vi 1 (half-configured) is there"},
		{"gone as a whole", nil, "kernel 1 is missing"},
	} {
		err := checkDatabase(base, lock, tc.got)
		if tc.say == "" && err != nil || tc.say != "" && (fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), tc.say)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.say)
		}
	}
}
