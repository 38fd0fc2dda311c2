import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vite'

// `npm run dev` passes requests on to an agent: PINDAH_SERVER=https://127.0.0.1:7480.
const server = process.env.PINDAH_SERVER ?? 'https://127.0.0.1:7480'

export default defineConfig({
  plugins: [svelte()],
  build: { target: 'es2022', assetsInlineLimit: 0, modulePreload: { polyfill: false } },
  server: {
    proxy: {
      '/api': { target: server, secure: false, changeOrigin: true, ws: true, rewriteWsOrigin: true },
    },
  },
})
