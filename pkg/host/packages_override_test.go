package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
)

// overrideLife: packages of the base are replaced and removed, and what becomes
// of that where the base moves. Of its images, a and b have lab-tool 1.0 and
// lab-editor, "newer" has lab-tool 2.0 and no lab-editor.
func overrideLife(t *testing.T, engine string) []step {
	l := newPackageLab(t, engine)
	version := func(v string) string { return map[string]string{"apt": v, "dnf": "0:" + v + "-1"}[engine] }
	file := func(dir, apt, dnf string) string {
		if engine == "apt" {
			return filepath.Join(l.dir, map[string]string{"rpm": "deb"}[dir]+strings.TrimPrefix(dir, "rpm"), apt)
		}
		return filepath.Join(l.dir, dir, dnf)
	}
	newTool := file("rpm", "lab-tool_2.0_all.deb", "lab-tool-2.0-1.noarch.rpm")
	oldTool := file("base", "lab-tool_1.0_all.deb", "lab-tool-1.0-1.noarch.rpm")
	do := doPackages
	overrides := func(want ...v1.PackageOverride) step {
		return step{name: "list", do: doListPackages, check: func(t *testing.T, s *stage) {
			if got := s.last.(*v1.PackageList).Overrides; !slices.Equal(got, want) {
				t.Errorf("overrides = %+v, want %+v", got, want)
			}
		}}
	}
	tool := v1.PackageOverride{Name: "lab-tool", Change: v1.OverrideReplaced, From: version("1.0"), To: version("2.0"), State: v1.OverrideActive}
	gone := v1.PackageOverride{Name: "lab-editor", Change: v1.OverrideRemoved, From: version("1.0"), State: v1.OverrideActive}
	local := tool
	local.Name = map[string]string{"apt": "lab-tool-2.0.all", "dnf": "lab-tool-0:2.0-1.noarch"}[engine]
	rests := func(o v1.PackageOverride, from string) v1.PackageOverride {
		o.From, o.To, o.State = from, "", v1.OverrideInactive
		return o
	}
	toolIs := func(want string) func(*testing.T, *stage) {
		return func(t *testing.T, s *stage) {
			t.Helper()
			list, err := doListPackages(s)
			must(t, err)
			layered := list.(*v1.PackageList).Layered
			if at := slices.IndexFunc(layered, func(p v1.Package) bool { return p.Name == "lab-tool" }); want == "" && at >= 0 || want != "" && (at < 0 || layered[at].Version != version(want)) {
				t.Errorf("on the image are %+v, want lab-tool %q", layered, want)
			}
		}
	}
	var plain string
	root := func(s *stage) string {
		h := s.open()
		defer h.Close()
		list, err := h.store.Deployments()
		must(s.t, err)
		return list[0].root
	}
	push := func(s *stage, tag string, version int) {
		s.refs[tag], _ = s.pushImage(tag, l.image(s.t, engine, version))
	}
	return []step{
		act("images", func(s *stage) { push(s, "a", 1); push(s, "b", 2) }),
		{name: "install", do: doInstall("a", "rw")},
		act("repository", func(s *stage) { l.configure(s, 0); plain = root(s) }),
		{name: "replace what the image lacks", do: do(PackagesOptions{Replace: []string{"lab-anchor"}}), kind: fault.NotFound},
		{name: "replace and remove", do: do(PackagesOptions{Replace: []string{"lab-tool"}, OverrideRemove: []string{"lab-editor"}, Add: []string{"lab-vi"}}), check: func(t *testing.T, s *stage) {
			toolIs("2.0")(t, s)
			wantFiles(0, "!usr/bin/lab-editor", "usr/bin/lab-vi")(t, s)
			wantFiles(1, "usr/bin/lab-editor")(t, s)
			wantIntact(t, s)
		}},
		overrides(gone, tool),
		{name: "status", do: doStatus, check: func(t *testing.T, s *stage) {
			e := s.last.(*v1.Host).Status.OtherDeployments[0]
			p := e.Kedge.Packages
			if !e.Incompatible || !slices.Equal(p.Removed, []string{"lab-editor"}) || !slices.Equal(p.Replaced, []string{"lab-tool " + version("2.0")}) {
				t.Errorf("status = incompatible %v, %+v", e.Incompatible, p)
			}
		}},
		{name: "replace again", do: do(PackagesOptions{Replace: []string{"lab-tool"}}), kind: fault.Conflict},
		{name: "switch keeps the overrides", do: doSwitch(SwitchOptions{Image: "b"}), check: func(t *testing.T, s *stage) {
			toolIs("2.0")(t, s)
			wantFiles(0, "!usr/bin/lab-editor", "usr/bin/lab-vi", "usr/lib/modules/6.1.0-2-test/vmlinuz")(t, s)
		}},
		overrides(gone, tool),
		{name: "a file in the place of the name", do: do(PackagesOptions{Replace: []string{newTool}}), check: toolIs("2.0")},
		overrides(gone, local),
		// What this host has now, others take as their base.
		act("an image with all that", func(s *stage) {
			r, err := s.on(func(h *Host) (any, error) { return h.PushImage(s.ctx, PushOptions{Target: s.registry + "/os:newer"}) })
			must(s.t, err)
			s.refs["newer"] = r.(*v1.StoredImage).Image
		}),
		{name: "remove what was added", do: do(PackagesOptions{Remove: []string{"lab-vi"}}), check: wantFiles(0, "!usr/bin/lab-vi", "!usr/bin/lab-editor")},
		{name: "switch to an image that has it", do: doSwitch(SwitchOptions{Image: "newer"}), check: toolIs("")},
		overrides(rests(gone, ""), rests(local, "")),
		{name: "status where overrides rest", do: doStatus},
		{name: "an older version", do: do(PackagesOptions{Replace: []string{oldTool}}), check: toolIs("1.0")},
		{name: "switch back", do: doSwitch(SwitchOptions{Image: "a"}), check: toolIs("")},
		{name: "list with an older one on an old image", do: doListPackages},
		{name: "reset of all", do: do(PackagesOptions{ResetAll: true}), check: func(t *testing.T, s *stage) {
			if got := root(s); got != plain {
				t.Errorf("the root is %s, want that of the plain image, %s", got, plain)
			}
			wantIntact(t, s)
			nothingLeft(t, s)
		}},
		overrides(),
		{name: "rollback brings them back", do: doRollback},
		{name: "list after the rollback", do: doListPackages},
		{name: "search", do: func(s *stage) (any, error) {
			return s.on(func(h *Host) (any, error) { return h.SearchPackages(s.ctx, []string{"lab-tool"}, false) })
		}, check: func(t *testing.T, s *stage) {
			if f := s.last.([]v1.PackageFound); len(f) != 1 || f[0].Version != version("2.0") || f[0].Installed != version("1.0") {
				t.Errorf("search = %+v", f)
			}
			nothingLeft(t, s)
		}},
	}
}

// TestPackageOverrides runs nightly with apt too: what differs between package
// managers is tested in pkg/layering.
func TestPackageOverrides(t *testing.T) {
	engines := []string{"dnf"}
	if os.Getenv("KEDGE_NIGHTLY") != "" {
		engines = append(engines, "apt")
	}
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) { conform(t, func(t *testing.T) []step { return overrideLife(t, engine) }) })
	}
}
