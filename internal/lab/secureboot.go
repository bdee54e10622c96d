package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unicode/utf16"
)

// What Secure Boot asks of a firmware's variables: UEFI 2.10, 32.3 (PK, KEK, db) and
// 32.4.1 (EFI_SIGNATURE_LIST); how edk2 keeps them: MdeModulePkg/Include/Guid/
// VariableFormat.h. GUIDs stand as they do in memory.
const (
	storeGUID   = "\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92" // authenticated variables
	globalGUID  = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	imagesGUID  = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f"
	enableGUID  = "\xc7\x0b\xa3\xf0\x08\xaf\x56\x45\x99\xc4\x00\x10\x09\xc9\x3a\x44"
	x509GUID    = "\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72"
	storeHeader = 28
)

// Enroll has the firmware of a machine that was not started yet start what is signed
// with the key of one of these certificates (PEM), and nothing else.
func (m *Machine) Enroll(certificates ...[]byte) error {
	vars, err := os.ReadFile(firmwareVars)
	if err != nil {
		return err
	}
	if len(vars) < 64 {
		return fmt.Errorf("%s is no variable store", firmwareVars)
	}
	store := int(binary.LittleEndian.Uint16(vars[48:])) // behind the volume's header
	at := store + storeHeader
	if len(vars) < at+4 || string(vars[store:][:16]) != storeGUID || !bytes.Equal(vars[at:][:4], []byte("\xff\xff\xff\xff")) {
		return fmt.Errorf("%s is no empty variable store", firmwareVars)
	}
	var list []byte
	for _, c := range certificates {
		block, _ := pem.Decode(c)
		if block == nil {
			return errors.New("a certificate is not PEM")
		}
		list = append(list, x509GUID...)
		for _, n := range []int{28 + 16 + len(block.Bytes), 0, 16 + len(block.Bytes)} {
			list = binary.LittleEndian.AppendUint32(list, uint32(n))
		}
		list = append(append(list, make([]byte, 16)...), block.Bytes...) // nobody's
	}
	const kept, authenticated = 0x3, 0x27 // non-volatile, seen by boot services; and the system, and by time
	var made []byte
	for _, v := range []struct {
		name, guid string
		attributes uint32
		data       []byte
	}{
		{"db", imagesGUID, authenticated, list},
		{"KEK", globalGUID, authenticated, list},
		{"SecureBootEnable", enableGUID, kept, []byte{1}},
		{"PK", globalGUID, authenticated, list[:binary.LittleEndian.Uint32(list[16:])]},
	} {
		made = append(made, variable(v.name, v.guid, v.attributes, v.data)...)
	}
	copy(vars[at:], made)
	return os.WriteFile(filepath.Join(m.Dir, varsFile), vars, 0o600)
}

// variable encodes one: AUTHENTICATED_VARIABLE_HEADER, name and data.
func variable(name, guid string, attributes uint32, data []byte) []byte {
	le := binary.LittleEndian
	var text []byte
	for _, u := range utf16.Encode([]rune(name + "\x00")) {
		text = le.AppendUint16(text, u)
	}
	h := make([]byte, 44)
	le.PutUint16(h, 0x55aa)
	h[2] = 0x3f // added
	le.PutUint32(h[4:], attributes)
	if attributes&0x20 != 0 {
		le.PutUint16(h[16:], 2020) // EFI_TIME, behind the count
		h[18], h[19] = 1, 1
	}
	le.PutUint32(h[36:], uint32(len(text)))
	le.PutUint32(h[40:], uint32(len(data)))
	h = append(append(append(h, guid...), text...), data...)
	for len(h)%4 > 0 {
		h = append(h, 0xff)
	}
	return h
}

// SignProgram has sbsign sign an EFI program in place, with a key and its
// certificate (PEM).
func SignProgram(ctx context.Context, file string, key, certificate []byte) (err error) {
	dir, err := os.MkdirTemp("", "kedge-sign-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, text := range map[string][]byte{"key": key, "crt": certificate} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return err
		}
	}
	_, err = Command(ctx, "sbsign", "--key", filepath.Join(dir, "key"), "--cert", filepath.Join(dir, "crt"), "--output", file, file)
	return err
}
