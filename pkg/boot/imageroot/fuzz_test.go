package imageroot

import (
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/fault"
)

func FuzzMarker(f *testing.F) {
	d := strings.Repeat("0", 128)
	f.Add(`{"depl_id":"` + d + `","finalization_locked":true}`)
	f.Add(`{"depl_id":"` + d + `","finalization_locked":true,"kedge":{"entry":"title x\nlinux /a\n","merge":"` + d + `","began":1}}`)
	f.Add(`{"depl_id":"../` + d + `"}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, text string) {
		m, err := decodeMarker([]byte(text))
		if err != nil {
			if fault.KindOf(err) != fault.Corrupt {
				t.Errorf("marker %q = %v, want a corrupt error", text, err)
			}
			return
		}
		if !digestForm.MatchString(m.Digest) {
			t.Errorf("marker %q names %q", text, m.Digest)
		}
	})
}

// FuzzEntry: whatever an entry says, what is taken from it stays beneath the
// directories it is used in, and its own entry is of one file and no more lines.
func FuzzEntry(f *testing.F) {
	d := strings.Repeat("a", 128)
	f.Add(bootcEntry("1", "bootc-x-0", d, d), "bootc_x-1-1.conf")
	f.Add("uki /EFI/Linux/bootc/bootc_composefs-"+d+".efi\nversion ../../x\nsort-key bootc-a/b-0\n", "x+1.conf")
	f.Add("linux /../../bootc_composefs-x/vmlinuz\noptions composefs=?"+d+"\n", "")
	f.Fuzz(func(t *testing.T, text, name string) {
		e := bls.Parse(text)
		digest, _, _, ok := imageOf(e)
		if ok && !digestForm.MatchString(digest) {
			t.Errorf("image = %q", digest)
		}
		if dir, ok := kernelOf(e); ok && (strings.HasPrefix(dir, "/") || strings.Contains("/"+dir+"/", "/../")) {
			t.Errorf("kernel in %q", dir)
		}
		for file := range encode([]*Deployment{{Digest: digest, Entry: e, entryFile: name}}) {
			if strings.ContainsAny(file, "/\x00\n") || len(file) > 255 || !strings.HasSuffix(file, ".conf") {
				t.Errorf("file name %q", file)
			}
		}
	})
}

func FuzzMounts(f *testing.F) {
	f.Add("25 1 0:23 / / ro shared:1 - overlay composefs:" + strings.Repeat("a", 128) + " ro\n")
	f.Add("25 1 0:23 / / ro - overlay transient:composefs=" + strings.Repeat("b", 64) + " ro")
	f.Add(" - \n- - -")
	f.Fuzz(func(t *testing.T, text string) {
		if d := rootImage(text); d != "" && !digestForm.MatchString(d) {
			t.Errorf("root image of %q = %q", text, d)
		}
	})
}
